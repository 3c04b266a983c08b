"""What the engine is asked for and what it answers, as plain values.

Times are `time.perf_counter_ns()` of this process.
"""

from __future__ import annotations

from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import TypeAlias

from headrace_runner.engine.image.stream import Slot
from headrace_runner.engine.stream import Failed, Last
from headrace_runner.models.pipeline import Drawing, Phase, Pixels

_PROGRESS_BYTES = 256


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One or more images, which differ in their seeds alone."""

    id: str
    drawings: tuple[Drawing, ...]
    priority: int = 0
    """A higher one goes first where requests wait."""
    preview_every: int | None = None
    """Steps from one preview to the next."""
    context: Context = field(default_factory=copy_context, compare=False, repr=False)
    """Of who asks, for what the engine logs of the request."""


@dataclass(frozen=True, slots=True)
class Started:
    """The request has left the queue; its first drawing begins."""

    at: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work on one image is."""

    phase: Phase | None
    """None: the request waits in line."""
    index: int = 0
    step: int | None = None
    """Steps done of this phase."""
    total: int | None = None
    position: int | None = None
    """Requests ahead, for one that waits in line."""
    due: int | None = None
    """When the request's last image is to be ready, by an estimate."""

    @property
    def slot(self) -> Slot:
        return "progress", self.index

    @property
    def cost(self) -> int:
        return _PROGRESS_BYTES


@dataclass(frozen=True, slots=True)
class Preview:
    """What one image looks like after a step."""

    index: int
    step: int
    pixels: Pixels

    @property
    def slot(self) -> Slot:
        return "preview", self.index

    @property
    def cost(self) -> int:
        return self.pixels.nbytes


@dataclass(frozen=True, slots=True)
class Part:
    """A phase as it was."""

    phase: Phase
    began: int
    ended: int
    steps: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """One image is ready."""

    index: int
    pixels: Pixels
    parts: tuple[Part, ...]
    """Of the work on it, which it may have shared with others."""
    batch: int
    """Number of that work; the same for images that were drawn together."""
    together: int
    """Images that were."""


@dataclass(frozen=True, slots=True)
class Finished(Last):
    """All images of the request are ready."""

    at: int


Event: TypeAlias = Started | Progress | Preview | Drawn | Finished | Failed
