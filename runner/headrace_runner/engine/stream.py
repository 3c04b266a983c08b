"""The way of one request's events from the engine to its reader, on the event loop.

What the reader has not taken yet is kept merged, so that a slow reader gets
fewer and larger messages and what waits for it is bounded by its own output.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from headrace_runner.engine.text.request import Delta, Event, Failed, Finished, Prefill


class EventStream:
    """Iterates over the events of one request, ending after `Finished` or raising `Failed`'s
    error. `close` gives the request up; it is idempotent and needed on every way out."""

    def __init__(self, on_close: Callable[[], None]) -> None:
        self._events: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._on_close = on_close
        self._ended = False

    def push(self, event: Event) -> None:
        """Takes an event from the engine. Called on the event loop."""
        last = self._events[-1] if self._events else None
        if isinstance(event, Delta) and isinstance(last, Delta):
            last.append(event)
        elif isinstance(event, Prefill) and isinstance(last, Prefill):
            self._events[-1] = event
        else:
            self._events.append(event)
        self._ended = self._ended or isinstance(event, Finished | Failed)
        self._ready.set()

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

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._ended:
                raise StopAsyncIteration
            self._ready.clear()
            await self._ready.wait()
        event = self._events.popleft()
        if isinstance(event, Failed):
            raise event.error
        return event
