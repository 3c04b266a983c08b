"""The controller of a chaos run: as any, but that it logs on SIGUSR1 which tasks it has, and how
many threads wait for work."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading

from headrace_server.main import main as run

logger = logging.getLogger(__name__)

TASKS = "tasks"
"""The message of the line with both."""


def main() -> int:
    """Gives the controller's exit status."""
    signal.signal(signal.SIGUSR1, lambda *_: _tell())
    return run()


def _tell() -> None:
    names = sorted(task.get_name() for task in asyncio.all_tasks())
    # asyncio's own, for what blocks: more of them come as more does so at once, up to a few.
    waiting = sum(thread.name.startswith("asyncio_") for thread in threading.enumerate())
    logger.warning(TASKS, extra={"names": names, "waiting": waiting})


if __name__ == "__main__":
    sys.exit(main())
