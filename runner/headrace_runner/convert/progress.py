"""How a conversion says how far it is. Says it seldom enough that saying costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

Phase: TypeAlias = Literal["convert", "store", "verify"]
Report: TypeAlias = Callable[[Phase, int, int], None]
"""Called with the phase, bytes done and bytes in all."""


class Meter:
    """Counts the bytes of one phase and reports every whole hundredth."""

    def __init__(self, report: Report, phase: Phase, total: int) -> None:
        self._report, self._phase, self._total = report, phase, total
        self._done = 0
        self._reported = 0
        report(phase, 0, total)

    def advance(self, count: int) -> None:
        self._done += count
        if self._done >= self._total or self._done - self._reported >= self._total / 100:
            self._reported = self._done
            self._report(self._phase, self._done, self._total)
