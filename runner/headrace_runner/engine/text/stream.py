"""The events of one text, merged while their reader is slow.

A slow reader gets fewer and larger messages. One who is more than `BEHIND` tokens behind is not
generated for until the half of them is taken: a stream's memory is bounded, and its row's place
goes to others meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

from headrace_runner.engine.stream import EventStream, Failed
from headrace_runner.engine.text.request import Delta, Event, Prefill

BEHIND = 512


class TextStream(EventStream[Event]):
    """The events of one completion."""

    def __init__(
        self, on_close: Callable[[], None], on_behind: Callable[[bool], None] = lambda behind: None
    ) -> None:
        """`on_behind` is told when the reader has fallen behind, and when it has caught up."""
        super().__init__(on_close)
        self._on_behind = on_behind
        self._waiting = 0
        """Tokens that the reader has not taken."""
        self._behind = False

    def _add(self, event: Event | Failed) -> None:
        if isinstance(event, Delta):
            self._merge(event)
        elif (
            isinstance(event, Prefill)
            and self._events
            and isinstance(last := self._events[-1], Prefill)
        ):
            self._events[-1] = event.after(last)
        else:
            self._events.append(event)

    def _merge(self, delta: Delta) -> None:
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

    def _taken(self, event: Event | Failed) -> None:
        if isinstance(event, Delta):
            self._waiting -= len(event.token_ids)
            if self._behind and self._waiting <= BEHIND // 2 and not self._ended:
                self._behind = False
                self._on_behind(False)
