"""Requests whose runner died under them begin again one at a time, until each has shown a token.

A runner that dies takes all its requests with it, and does not say which of them was the cause. If
they began again together, that one would take the others with it a second time, and all would be
refused. So those that may be the cause take turns: who dies again then, without a token, is it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from weakref import WeakValueDictionary


class Late(Exception):
    """The turn was over before the runner had the request; there has to be another."""


class Turn:
    """One suspect's turn. It ends by itself some time after it began."""

    def __init__(self, lock: asyncio.Lock, patience: float) -> None:
        """`lock` is held, and released at the end."""
        self._lock: asyncio.Lock | None = lock
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The runner is to have the request. Until then the turn lasts as long as the load takes.

        Raises Late.
        """
        if self._lock is None:
            raise Late
        self._timer = asyncio.get_running_loop().call_later(self._patience, self.end)

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Within this a client is waited for, which may not read: the turn ends by itself as well.
        The next ones do not wait for their neighbour's client."""
        timer = asyncio.get_running_loop().call_later(self._patience, self.end)
        try:
            yield
        finally:
            timer.cancel()

    def end(self) -> None:
        """The next one may go. May be said again."""
        if self._timer is not None:
            self._timer.cancel()
        if self._lock is not None:
            self._lock.release()
            self._lock = None


class Probation:
    """The turns of each model's suspects. Belongs to one event loop."""

    def __init__(self, patience: float) -> None:
        """`patience`: seconds of a turn, at most; a prompt may be long, and text held back."""
        self._patience = patience
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(
        self, key: str, heartbeat: float, on_heartbeat: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[Turn]:
        """Waits for the turn among those of the model `key`, and calls `on_heartbeat` every
        `heartbeat` seconds meanwhile. The turn ends with this at the latest."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        while not await _acquired(lock, heartbeat):
            await on_heartbeat()
        turn = Turn(lock, self._patience)
        try:
            yield turn
        finally:
            turn.end()


async def _acquired(lock: asyncio.Lock, patience: float) -> bool:
    try:
        async with asyncio.timeout(patience):
            return await lock.acquire()
    except TimeoutError:
        return False
