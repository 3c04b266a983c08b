"""The way of one request's events from the engine to its reader, on the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

E = TypeVar("E")


class Last:
    """An event after which none comes for its request."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Failed(Last):
    """The request has ended with an error."""

    error: Exception


class EventStream(Generic[E]):
    """Iterates over the events of one request, ending after a `Last` one or raising `Failed`'s
    error. `close` gives the request up; it is idempotent and needed on every way out."""

    def __init__(self, on_close: Callable[[], None] = lambda: None) -> None:
        self._events: deque[E | Failed] = deque()
        self._ready = asyncio.Event()
        self._on_close = on_close
        self._ended = False

    def push(self, event: E | Failed) -> None:
        """Takes an event from the engine. Called on the event loop."""
        self._add(event)
        self._ended = self._ended or isinstance(event, Last)
        self._ready.set()

    def _add(self, event: E | Failed) -> None:
        """Keeps an event for the reader; the place to merge it with what waits."""
        self._events.append(event)

    def _taken(self, event: E | Failed) -> None:
        """The reader has got an event."""

    def close(self) -> None:
        """Tells the engine to stop working on the request, unless it has ended."""
        if not self._ended:
            self._ended = True
            self._on_close()

    async def wait(self, patience: float) -> bool:
        """Waits until there is an event, or the end; False after `patience` seconds without."""
        if not self._events and not self._ended:
            self._ready.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._ready.wait()
            except TimeoutError:
                return False
        return True

    def __aiter__(self) -> EventStream[E]:
        return self

    async def __anext__(self) -> E:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        event = self._events.popleft()
        self._taken(event)
        if isinstance(event, Failed):
            raise event.error
        return event
