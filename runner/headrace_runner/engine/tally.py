"""How great the values of a kind were, counted by class.

A tally belongs to the thread that counts; what it hands out are readings.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TypedDict

from opentelemetry import metrics

from headrace.telemetry import names
from headrace.telemetry.names import HistogramSpec

_meter = metrics.get_meter("headrace.runner")


@dataclass(frozen=True, slots=True)
class Distribution:
    """A reading."""

    bounds: tuple[float, ...] = ()
    """Upper bounds of the classes, each part of its class. The last class has none."""
    counts: tuple[int, ...] = (0,)
    """Values in each class: one more than there are bounds."""
    sum: float = 0.0
    """Of all values."""


class Tally:
    """Counts values, for the runner's own report and for OpenTelemetry, where that is set up."""

    def __init__(self, spec: HistogramSpec) -> None:
        self._bounds = spec.boundaries
        self._counts = [0] * (len(spec.boundaries) + 1)
        self._sum = 0.0
        self._histogram = spec.create(_meter)

    def add(self, value: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value
        self._histogram.record(value)

    def read(self) -> Distribution:
        """All that was counted so far."""
        return Distribution(self._bounds, tuple(self._counts), self._sum)


class StepReadings(TypedDict):
    """Of an engine's steps, as its stats have them."""

    step_seconds: Distribution
    step_rows: Distribution


class Steps:
    """An engine's steps: how long each took, and of how many rows it was."""

    def __init__(self) -> None:
        self._seconds = Tally(names.ENGINE_STEP_DURATION)
        self._rows = Tally(names.ENGINE_BATCH_SIZE)

    def add(self, seconds: float, rows: int) -> None:
        """Count one."""
        self._seconds.add(seconds)
        self._rows.add(rows)

    def read(self) -> StepReadings:
        """All that was counted so far."""
        return {"step_seconds": self._seconds.read(), "step_rows": self._rows.read()}
