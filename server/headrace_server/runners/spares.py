"""A spare runner: started without a model, its imports done, so that the next load begins at once.

There is one at most. The rule for when it is made is `due`, which is pure; `Spares` acts on it
and owns the process until a runner takes it. Nobody ever waits for a spare: where none is there,
a runner starts as it would without.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context

from headrace_server.runners.spawn import Spawned

logger = logging.getLogger(__name__)

QUIET = 1.0
"""Seconds without a request, after which a spare may be made."""
PATIENCE = 30.0
"""Seconds that the making of a spare is put off for running requests, since its imports take a
second or two of a core."""
BACKOFF = 5.0
"""Seconds from the death of a spare to the next one; each further death doubles them."""
LEAST_MEMORY = 4 << 30
"""Bytes of the memory budget below which there is no spare unless it is asked for. It takes some
100 MB beside the budget, of what the budget leaves free."""
MOST_DEATHS = 3
"""In a row, without one that was taken; then no more are made."""


class Activity(enum.Enum):
    """What the controller does at a moment, as far as it matters here."""

    LOADING = "loading"
    BUSY = "busy"
    """Requests run."""
    QUIET = "quiet"


def is_wanted(told: bool | None, memory: int) -> bool:
    """Whether a spare is kept: what the operator said, else by the budget, in bytes."""
    return memory >= LEAST_MEMORY if told is None else told


def due(activity: Activity, deaths: int, wanted_at: float, now: float) -> float | None:
    """When a spare is to be made, if nothing changes; None: not as things are.

    Never while a model is loaded, and best when no request runs.
    `wanted_at`: since when there has been none although there might.
    """
    if activity is Activity.LOADING or deaths >= MOST_DEATHS:
        return None
    backoff = BACKOFF * 2.0 ** (deaths - 1) if deaths else 0.0
    if activity is Activity.QUIET:
        return max(now + QUIET, wanted_at + backoff)
    return max(now, wanted_at + max(PATIENCE, backoff))


class Spares:
    """Keeps a spare runner at hand, from the end of a first load on. Belongs to one event loop."""

    def __init__(
        self, make: Callable[[], Awaitable[Spawned]], activity: Callable[[], Activity]
    ) -> None:
        """`make` starts a spare; may raise OSError. `activity` says what goes on now."""
        self._make = make
        self._activity = activity
        self._clock = asyncio.get_running_loop().time
        self._deaths = 0
        self._seen = Activity.LOADING
        self._wanted_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._spare: Spawned | None = None
        self._taken = asyncio.Event()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the spare; None where there is none."""
        return self._spare.process.pid if self._spare else None

    def look(self) -> None:
        """See what goes on. Call it after whatever may have changed that."""
        before, self._seen = self._seen, self._activity()
        if self._seen is before:
            return
        if before is Activity.LOADING:
            self._wanted_at = self._clock()
        self._arm()

    def take(self) -> Spawned | None:
        """The spare, which is the caller's from now on; None where there is none."""
        spare = self._spare
        if spare is None or spare.process.returncode is not None:
            return None
        self._spare = None
        self._deaths = 0
        self._taken.set()
        return spare

    async def close(self) -> None:
        """End the spare and make no other."""
        self._closed = True
        self._disarm()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def _arm(self) -> None:
        self._disarm()
        if self._closed or self._task is not None:
            return
        at = due(self._seen, self._deaths, self._wanted_at, self._clock())
        if at is not None:
            loop = asyncio.get_running_loop()
            # In a context of its own: a spare is part of nobody's trace.
            self._timer = loop.call_at(at, self._begin, context=Context())

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin(self) -> None:
        self._timer = None
        self._task = asyncio.create_task(self._live(), name="spare runner")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._wanted_at = self._clock()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._died(f"it could not be started: {error}")
        self._arm()

    async def _live(self) -> None:
        """One spare, until it is taken or dies."""
        self._taken.clear()
        spare = self._spare = await self._make()
        logger.info("a spare runner is there", extra={"pid": spare.process.pid})
        death = asyncio.create_task(spare.process.wait())
        taken = asyncio.create_task(self._taken.wait())
        try:
            await asyncio.wait({death, taken}, return_when=asyncio.FIRST_COMPLETED)
            if self._spare is spare:
                self._died(f"it ended with status {death.result()}", await spare.last_words())
        finally:
            taken.cancel()
            if self._spare is spare:
                self._spare = None
                spare.dispose()
            else:
                death.cancel()
            await asyncio.wait({death})

    def _died(self, how: str, detail: str = "") -> None:
        self._deaths += 1
        end = "; no more are made" if self._deaths >= MOST_DEATHS else ""
        logger.warning("the spare runner died: %s%s", how, end, extra={"detail": detail})
