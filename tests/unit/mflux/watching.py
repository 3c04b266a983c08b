"""Somebody who watches a drawing, and may end it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from headrace_runner.models.mflux.pipeline import MfluxPipeline
from headrace_runner.models.pipeline import Drawing, Phase, Pixels, Unwatched

Event = tuple[Phase, int] | int


class Ended(Exception):
    """Enough."""


class Watcher(Unwatched):
    """Writes down what it hears, and ends the work at an event it is told."""

    def __init__(self, end_at: Event | None = None, previews: bool = False) -> None:
        self.events: list[Event] = []
        self.previews: list[Pixels] = []
        self._end_at = end_at
        self._wants_previews = previews

    def phase(self, phase: Phase, total: int) -> None:
        self._hear((phase, total))

    def step(self, done: int, preview: Callable[[], Sequence[Pixels]]) -> None:
        if self._wants_previews:
            self.previews += preview()
        self._hear(done)

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        if event == self._end_at:
            raise Ended


def drawing(**changed: Any) -> Drawing:
    """A small image, but for what is said: smaller than a request may ask for, which is quicker."""
    said: dict[str, Any] = {"prompt": "a cat", "seed": 7, "width": 32, "height": 32, "steps": 2}
    return Drawing(**(said | changed))


def draw(pipeline: MfluxPipeline, watch: Watcher | None = None, **changed: Any) -> Pixels:
    (pixels,) = pipeline.draw([drawing(**changed)], watch or Watcher())
    return pixels


def photo(width: int = 32, height: int = 32, channels: int = 3) -> Pixels:
    """An input image: noise."""
    return np.random.default_rng(3).integers(0, 256, (height, width, channels), dtype=np.uint8)


def same(one: Pixels, other: Pixels) -> bool:
    return bool(np.array_equal(one, other))
