"""The entry of `headrace`. Says how to install the command line where it is missing."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line and exits with its code."""
    # gRPC's own log lines would end up in the middle of an answer.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        sys.stderr.write("The command line is not installed: pip install 'headrace[cli]'\n")
        sys.exit(1)
    from headrace.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
