"""Drawings that are made together: how far they are, and how long the rest will take. Pure; it is
told the time, in nanoseconds of `time.perf_counter_ns()`."""

from __future__ import annotations

from collections.abc import Sequence

from headrace_runner.engine.image.line import Piece
from headrace_runner.engine.image.pace import Pace
from headrace_runner.engine.image.request import Part
from headrace_runner.models.pipeline import Phase


class Batch:
    """Some drawings of one size and number of steps."""

    def __init__(self, number: int, pieces: Sequence[Piece], pace: Pace) -> None:
        """What it takes is learnt into `pace`."""
        self.number = number
        self.pieces = pieces
        self.parts: list[Part] = []
        """The phases that are over."""
        self.phase: Phase | None = None
        self.total = 0
        """Steps of the phase."""
        self.done = 0
        self._pace = pace
        self._began = self._stepped = self._told = 0

    def begin(self, phase: Phase, total: int, now: int) -> None:
        """A phase begins, and the one before it is over."""
        self.close(now)
        self.phase, self.total, self.done = phase, total, 0
        self._began = self._stepped = self._told = now

    def advance(self, done: int, now: int) -> float:
        """So many steps of the phase are done; gives the seconds that the last one took."""
        steps = done - self.done
        seconds = (now - self._stepped) / 1e9
        if self.phase is Phase.DENOISING and steps > 0:
            self._pace.stepped(self._pixels * steps, seconds)
        self.done = done
        self._stepped = now
        return seconds / max(steps, 1)

    def is_to_tell(self, interval: float) -> bool:
        """Whether the step that was done last is to be told: the last of a phase is, any other
        where `interval` seconds have passed since one was told, or since the phase began."""
        if self.done < self.total and (self._stepped - self._told) / 1e9 < interval:
            return False
        self._told = self._stepped
        return True

    def resume(self, now: int) -> None:
        """What came since the last step was no part of the next one."""
        self._stepped = now

    def close(self, now: int) -> None:
        """The phase is over."""
        if self.phase is None:
            return
        seconds = (now - self._began) / 1e9
        if self.phase is Phase.ENCODING:
            self._pace.encoded(len(self.pieces), seconds)
        elif self.phase is Phase.DECODING:
            self._pace.decoded(self._pixels, seconds)
        self.parts.append(Part(self.phase, self._began, now, self.done))
        self.phase = None

    def rest(self) -> float | None:
        """Seconds until its images are ready; None where nobody knows."""
        drawing = self.pieces[0].drawing
        if self.phase in (None, Phase.ENCODING):
            return self._pace.rest(drawing, len(self.pieces))
        steps = self.total - self.done if self.phase is Phase.DENOISING else 0
        return self._pace.rest(drawing, len(self.pieces), steps=steps, encoded=True)

    @property
    def _pixels(self) -> int:
        drawing = self.pieces[0].drawing
        return len(self.pieces) * drawing.width * drawing.height
