"""The controller of a chaos run: as any, but that it logs the names of its tasks on SIGUSR1."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from headrace_server.main import main as run

logger = logging.getLogger(__name__)

TASKS = "tasks"
"""The message of the line with the names."""


def main() -> int:
    """Gives the controller's exit status."""
    signal.signal(signal.SIGUSR1, lambda *_: _list_tasks())
    return run()


def _list_tasks() -> None:
    names = sorted(task.get_name() for task in asyncio.all_tasks())
    logger.warning(TASKS, extra={"names": names})


if __name__ == "__main__":
    sys.exit(main())
