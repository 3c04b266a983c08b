"""Events about images on their way to a reader: what is outdated is not kept."""

from __future__ import annotations

from typing import TypeVar

from headrace_runner.engine.image.request import Progress
from headrace_runner.engine.stream import EventStream, Failed

E = TypeVar("E")

KEPT = 64
"""Events that may wait before progress that is outdated is left out."""


class ImageStream(EventStream[E]):
    """Holds, for a reader who is slow, the last preview of each image, progress as long as it is
    little and then the last of each image, and everything else."""

    def _add(self, event: E | Failed) -> None:
        slot = getattr(event, "slot", None)
        if slot is not None and not (isinstance(event, Progress) and len(self._events) < KEPT):
            for place, waiting in enumerate(self._events):
                if getattr(waiting, "slot", None) == slot:
                    del self._events[place]
                    break
        self._events.append(event)
