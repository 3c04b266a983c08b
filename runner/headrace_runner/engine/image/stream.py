"""Events about images on their way to a reader: what is outdated is not kept for a slow one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from headrace_runner.engine.stream import EventStream, Failed

E = TypeVar("E")

Slot: TypeAlias = tuple[str, int]

HELD_BYTES = 1 << 20
"""What may wait of events that go out of date, before the outdated ones are left out."""


@runtime_checkable
class Fleeting(Protocol):
    """An event that the next one of its slot puts out of date."""

    @property
    def slot(self) -> Slot: ...
    @property
    def cost(self) -> int:
        """Bytes, about."""


class ImageStream(EventStream[E]):
    """Holds, for a reader who is slow, progress and previews up to a bound and beyond that the last
    of each image, and everything else."""

    def __init__(self, on_close: Callable[[], None] = lambda: None) -> None:
        super().__init__(on_close)
        self._held = 0

    def _add(self, event: E | Failed) -> None:
        if isinstance(event, Fleeting):
            self._held += event.cost
            if self._held > HELD_BYTES:
                self._leave_out(event.slot)
        self._events.append(event)

    def _leave_out(self, slot: Slot) -> None:
        """The oldest of a slot, where there is one."""
        for place, waiting in enumerate(self._events):
            if isinstance(waiting, Fleeting) and waiting.slot == slot:
                self._held -= waiting.cost
                del self._events[place]
                return

    def _taken(self, event: E | Failed) -> None:
        if isinstance(event, Fleeting):
            self._held -= event.cost
