"""A timer that is set again and again, and goes off once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextvars import Context


class Alarm:
    """Calls back at the earliest of the times that it was set to. Belongs to one event loop.

    What is set to every request's coming and going would mostly be set to later: that costs
    nothing here, and whoever is called too early for what he waits for sets it again.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        """`call` is called in an empty context: what time brings is part of nobody's trace."""
        self._call = call
        self._timer: asyncio.TimerHandle | None = None

    def set(self, due: float) -> None:
        """Call back then, or earlier where it is set to that. `due`: on the event loop's clock;
        infinite: leave it as it is."""
        if due == math.inf or (self._timer is not None and self._timer.when() <= due):
            return
        self.cancel()
        self._timer = asyncio.get_running_loop().call_at(due, self._ring, context=Context())

    def cancel(self) -> bool:
        """Do not call back. Gives whether it was set."""
        if self._timer is None:
            return False
        self._timer.cancel()
        self._timer = None
        return True

    def _ring(self) -> None:
        self._timer = None  # First: who is called may set it.
        self._call()
