"""Requests whose runner died under them begin again one at a time, until each has shown a token.

A runner that dies takes all its requests with it, and does not say which of them was the cause. If
they began again together, that one would take the others with it a second time, and all would be
refused. So those that may be the cause take turns: who dies again then, without a token, is it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

Pass = Callable[[], None]


class Probation:
    """The turns of each model's suspects. Belongs to one event loop."""

    def __init__(self, patience: float) -> None:
        """`patience`: seconds of a turn, at most; a prompt may be long, and text held back."""
        self._patience = patience
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(
        self, key: str, heartbeat: float, on_heartbeat: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[Pass]:
        """Waits for the turn among those of the model `key`, and calls `on_heartbeat` every
        `heartbeat` seconds meanwhile. Gives what ends the turn before this does."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        while not await _acquired(lock, heartbeat):
            await on_heartbeat()
        held = True

        def end() -> None:
            nonlocal held
            if held:
                held = False
                lock.release()

        timer = asyncio.get_running_loop().call_later(self._patience, end)
        try:
            yield end
        finally:
            timer.cancel()
            end()


async def _acquired(lock: asyncio.Lock, patience: float) -> bool:
    try:
        async with asyncio.timeout(patience):
            return await lock.acquire()
    except TimeoutError:
        return False
