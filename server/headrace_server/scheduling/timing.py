"""How long things take here, learnt from what was measured. Pure arithmetic in seconds.

What is learnt serves to refuse requests whose deadline cannot be met. A refusal in error costs more
than one that fails to come, so every figure is a low one: the mean, less twice the deviation, both
weighted exponentially as TCP does for its round-trip times (RFC 6298). A single measurement says
nothing yet; figures that scatter say little. So do old ones, or nobody who is refused by a figure
would ever put it right: half of it is left of each `HALF_LIFE` without a new measurement.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

LONG_PROMPT = 4096
"""Bytes from which on a prompt's time to the first token tells what a byte costs. With shorter ones
it is mostly other things."""

HALF_LIFE = 300.0
"""Seconds."""

_MEAN_GAIN = 1 / 8
_DEVIATION_GAIN = 1 / 4
_DEVIATIONS = 2.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a request's parts take at least. 0: not known."""

    load: float = 0.0
    """From the start of the model's runner until it serves."""
    service: float = 0.0
    """From the grant of a place until it is given back."""
    prefill: float = 0.0
    """From the grant of a place until this request's first token, if no cache has of its prompt."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """One figure, over several measurements."""

    mean: float = 0.0
    deviation: float = 0.0
    measured_at: float | None = None
    """When it last was; None: never."""

    def after(self, value: float, now: float) -> "Estimate":
        """What is known after one more measurement."""
        if self.measured_at is None:
            return Estimate(value, value / 2, now)
        off = value - self.mean
        return Estimate(
            self.mean + _MEAN_GAIN * off,
            self.deviation + _DEVIATION_GAIN * (abs(off) - self.deviation),
            now,
        )

    def low(self, now: float) -> float:
        """What it takes at least; 0 where too little is known."""
        if self.measured_at is None:
            return 0.0
        left = math.exp2((self.measured_at - now) / HALF_LIFE)
        return max(0.0, self.mean - _DEVIATIONS * self.deviation) * left


_UNKNOWN = Estimate()


class Timings:
    """What was measured, by key. Holds a few numbers for each model."""

    def __init__(self) -> None:
        self._loads: dict[str, Estimate] = {}
        self._load_per_byte = _UNKNOWN
        self._services: dict[str, Estimate] = {}
        self._prefills: dict[str, Estimate] = {}
        """Seconds for a byte of prompt."""

    def loaded(self, key: str, memory: int, seconds: float, now: float) -> None:
        """A load took so long; `memory` is what it was estimated to need, in bytes."""
        self._loads[key] = self._loads.get(key, _UNKNOWN).after(seconds, now)
        if memory > 0:
            self._load_per_byte = self._load_per_byte.after(seconds / memory, now)

    def served(self, key: str, seconds: float, now: float) -> None:
        """A request had its place for so long."""
        self._services[key] = self._services.get(key, _UNKNOWN).after(seconds, now)

    def advanced(self, key: str, prompt_bytes: int, seconds: float, now: float) -> None:
        """A request of so many bytes had its first token so long after it got its place."""
        if prompt_bytes >= LONG_PROMPT:
            estimate = self._prefills.get(key, _UNKNOWN)
            self._prefills[key] = estimate.after(seconds / prompt_bytes, now)

    def pace(self, key: str, memory: int, prompt_bytes: int, now: float) -> Pace:
        """How long a request takes at least. A model never loaded is taken to load like others."""
        load = self._loads.get(key)
        return Pace(
            load=self._load_per_byte.low(now) * memory if load is None else load.low(now),
            service=self._services.get(key, _UNKNOWN).low(now),
            prefill=self._prefills.get(key, _UNKNOWN).low(now) * prompt_bytes,
        )

    def keep_only(self, keys: Collection[str]) -> None:
        """Forget the other models."""
        for known in (self._loads, self._services, self._prefills):
            for key in known.keys() - keys:
                del known[key]
