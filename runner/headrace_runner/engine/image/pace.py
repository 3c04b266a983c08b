"""How long drawings take here: learnt from those that were made. Pure, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from headrace_runner.models.pipeline import Drawing

_NEW = 0.3
"""Weight of what was measured last."""


@dataclass(slots=True)
class _Average:
    value: float | None = None

    def learn(self, value: float) -> None:
        self.value = value if self.value is None else self.value + _NEW * (value - self.value)


class Pace:
    """What each phase takes: per image, or per pixel of all images of a batch."""

    def __init__(self) -> None:
        self._encoding = _Average()
        self._step = _Average()
        self._decoding = _Average()

    def encoded(self, images: int, seconds: float) -> None:
        """The prompts and input images of so many took so long."""
        self._encoding.learn(seconds / images)

    def stepped(self, pixels: int, seconds: float) -> None:
        """One step of so many pixels in all took so long."""
        self._step.learn(seconds / pixels)

    def decoded(self, pixels: int, seconds: float) -> None:
        """To decode so many pixels in all took so long."""
        self._decoding.learn(seconds / pixels)

    def rest(
        self, drawing: Drawing, images: int, *, steps: int | None = None, encoded: bool = False
    ) -> float | None:
        """What is left of so many drawings, of which `steps` steps are to be done yet; None: all.
        None where no step was ever measured."""
        if self._step.value is None:
            return None
        pixels = images * drawing.width * drawing.height
        left = drawing.steps if steps is None else steps
        encoding = 0.0 if encoded else images * (self._encoding.value or 0.0)
        decoding = pixels * (self._decoding.value or 0.0)
        return encoding + left * pixels * self._step.value + decoding
