"""The controller of a chaos run: it takes the kills for no fault of the model, and lists its tasks.

On SIGUSR1 it logs the names of all its asyncio tasks.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from functools import partial

from headrace_server import app
from headrace_server.scheduling.state import Limits

logger = logging.getLogger(__name__)

TASKS = "tasks"
"""The message of the line with the names."""


def main() -> int:
    """Gives the controller's exit status."""
    vars(app)["Limits"] = partial(Limits, backoff=0.0, max_crashes=sys.maxsize)
    signal.signal(signal.SIGUSR1, lambda *_: _list_tasks())
    return app.main()


def _list_tasks() -> None:
    names = sorted(task.get_name() for task in asyncio.all_tasks())
    logger.warning(TASKS, extra={"names": names})


if __name__ == "__main__":
    sys.exit(main())
