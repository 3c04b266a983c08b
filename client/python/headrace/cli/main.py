"""The entry of `headrace`. Says how to install the command line where it is missing."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line and exits with its code."""
    try:
        import click  # noqa: F401 (is it there?)
    except ModuleNotFoundError:
        sys.stderr.write("The command line is not installed: pip install 'headrace[cli]'\n")
        sys.exit(1)
    from headrace.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
