"""The way of one request's events from the engine to its reader, on the event loop.

What the reader has not taken yet is kept merged, so that a slow reader gets fewer and larger
messages. One who is more than `BEHIND` tokens behind is not generated for until the half of them is
taken: a stream's memory is bounded, and its row's place goes to others meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from headrace_runner.engine.text.request import Delta, Event, Failed, Finished, Prefill

BEHIND = 512


class EventStream:
    """Iterates over the events of one request, ending after `Finished` or raising `Failed`'s
    error. `close` gives the request up; it is idempotent and needed on every way out."""

    def __init__(
        self, on_close: Callable[[], None], on_behind: Callable[[bool], None] = lambda behind: None
    ) -> None:
        """`on_behind` is told when the reader has fallen behind, and when it has caught up."""
        self._events: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._on_close = on_close
        self._on_behind = on_behind
        self._waiting = 0
        """Tokens that the reader has not taken."""
        self._behind = False
        self._ended = False

    def push(self, event: Event) -> None:
        """Takes an event from the engine. Called on the event loop."""
        if isinstance(event, Delta):
            self._add(event)
        elif (
            isinstance(event, Prefill)
            and self._events
            and isinstance(last := self._events[-1], Prefill)
        ):
            self._events[-1] = event.after(last)
        else:
            self._events.append(event)
        self._ended = self._ended or isinstance(event, Finished | Failed)
        self._ready.set()

    def _add(self, delta: Delta) -> None:
        self._waiting += len(delta.token_ids)
        if self._waiting > BEHIND and not self._behind:
            self._behind = True
            self._on_behind(True)
        # Deltas of several choices take turns; each is merged with the last of its own.
        for event in reversed(self._events):
            if not isinstance(event, Delta):
                break
            if event.choice == delta.choice:
                event.append(delta)
                return
        self._events.append(delta)

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
        if isinstance(event, Delta):
            self._waiting -= len(event.token_ids)
            if self._behind and self._waiting <= BEHIND // 2 and not self._ended:
                self._behind = False
                self._on_behind(False)
        if isinstance(event, Failed):
            raise event.error
        return event
