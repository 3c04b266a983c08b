"""The controller as it is, but that the runners it starts are fast ones."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import headrace_server.__main__  # noqa: F401 - sets gRPC up, as it does for users
from headrace_server.main import main
from headrace_server.runners.supervisor import Supervisor
from headrace_server.scheduling import planner

# A runner does not look for modules in the folder that it is started in.
_FAST = f"""\
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.bench.fast_runner import main
sys.exit(main())
"""

if __name__ == "__main__":
    command = (sys.executable, "-c", _FAST)
    vars(planner)["Supervisor"] = partial(Supervisor, command=command)
    sys.exit(main(["--no-spare", *sys.argv[1:]]))
