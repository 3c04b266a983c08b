"""What runners do in a second, from what they have counted at two moments. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from headrace.types import Runner, RunnersSnapshot

KEPT: Final = 24
"""Moments of each runner that its line shows."""

_BLOCKS: Final = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Rate:
    """Of one runner. None: not known yet, or not told."""

    output: float | None
    """Tokens generated in a second."""
    prompt: float | None
    """Prompt tokens begun in a second."""


class Rates:
    """The rates of all runners of one controller, and those of the last moments."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int, int]] = {}
        self._history: dict[str, deque[float]] = {}
        self._total: deque[float] = deque(maxlen=KEPT)

    def take(self, snapshot: RunnersSnapshot, now: float) -> dict[str, Rate]:
        """The rates since the last snapshot, by runner. `now`: seconds on any steady clock."""
        rates = {runner.id: self._rate(runner, now) for runner in snapshot.runners}
        for gone in self._history.keys() - rates.keys():
            del self._history[gone]
            self._last.pop(gone, None)
        for runner_id, rate in rates.items():
            self._history.setdefault(runner_id, deque(maxlen=KEPT)).append(rate.output or 0.0)
        self._total.append(sum(rate.output or 0.0 for rate in rates.values()))
        return rates

    def history(self, runner_id: str) -> list[float]:
        """Its output rates so far, the oldest first."""
        return list(self._history.get(runner_id, ()))

    @property
    def total(self) -> list[float]:
        """The output rates of all together."""
        return list(self._total)

    def _rate(self, runner: Runner, now: float) -> Rate:
        report = runner.report
        if report is None:
            return Rate(None, None)
        counted = (now, report.output_tokens_total, report.prompt_tokens_total)
        before, self._last[runner.id] = self._last.get(runner.id), counted
        if before is None or now <= before[0]:
            return Rate(None, None)
        seconds = now - before[0]
        return Rate((counted[1] - before[1]) / seconds, (counted[2] - before[2]) / seconds)


def trend(values: list[float], *, unicode: bool) -> str:
    """A line of blocks, as high as the values are beside the highest of them."""
    highest = max(values, default=0.0)
    if highest <= 0 or not unicode:
        return ""
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(value / highest * steps)] if value else " " for value in values)
