"""What the process is told from outside: to stop, to hand over, to read its settings again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable

from headrace_server.predecessor import HAND_OVER

logger = logging.getLogger(__name__)


class Stop:
    """Hears that the process is to stop, by a signal or the end of its stdin; or to read anew."""

    def __init__(self, *, can_hand_over: bool) -> None:
        self.wanted = asyncio.Event()
        """Set with each wish to stop; clear it to hear the next one."""
        self.reread = asyncio.Event()
        """Set with each wish to have the configuration read again."""
        self.has_successor = False
        """Whether another controller has taken the address over."""
        self.let_go: Callable[[], None] = lambda: None
        """Called when a successor comes while this process stops for another reason."""
        self._can_hand_over = can_hand_over
        self._stops = False
        self._terminals = [fd for fd in range(3) if os.isatty(fd)]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._hear)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        loop.add_signal_handler(HAND_OVER, self._hand_over)

    def _hear(self) -> None:
        self._stops = True
        self.wanted.set()

    def _hang_up(self) -> None:
        # Also the signal of a terminal that is closed: then nobody is there to serve on for.
        if not all(map(os.isatty, self._terminals)):
            self._hear()
        else:
            self.reread.set()

    def _hand_over(self) -> None:
        if not self._can_hand_over:
            logger.warning("not handing over: started without --takeover")
        elif self._stops:
            # It would take another wish to stop for one to be quick.
            self.let_go()
        else:
            self.has_successor = True
            self._hear()

    async def with_stdin(self) -> None:
        """Stop when stdin ends, too: whoever started this process has gone."""
        hear = self._hear

        class Stdin(asyncio.Protocol):
            def connection_lost(self, exc: Exception | None) -> None:
                hear()

        await asyncio.get_running_loop().connect_read_pipe(Stdin, sys.stdin)
