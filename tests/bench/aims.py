"""What the figures are to reach, and whether they do: the last lines of the speed table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.speed import Row
from tests.bench.stats import Spread, ratio


@dataclass(frozen=True)
class Aim:
    """A ratio of two contenders' figures at one number of streams, and its bound."""

    contender: str
    base: str
    figure: str
    streams: int
    least: float | None = None
    most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether `value` is within the bound."""
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )

    @property
    def bound(self) -> str:
        """For people."""
        return f"≤ {self.most:g}" if self.least is None else f"≥ {self.least:g}"


AIMS = (
    *(Aim("exact", "bare", "overall", streams, least=0.95) for streams in (1, 8, 16, 32)),
    *(Aim("path", "runner", "overall", streams, least=0.97) for streams in (1, 8, 16, 32)),
    Aim("path", "stock", "overall", 8, least=10),
    Aim("exact", "tuned", "overall", 32, least=1.3),
    Aim("exact", "tuned", "ttft_p50", 16, most=0.5),
    Aim("path", "llama", "overall", 1, least=0.6),
    Aim("path", "llama", "overall", 8, least=1),
    Aim("path", "llama", "overall", 32, least=1),
)


def reached(
    rows: Mapping[tuple[str, int], Row], aims: Sequence[Aim] = AIMS
) -> list[tuple[Aim, Spread]]:
    """Each aim with its ratio over the rounds; those that were not measured are left out.

    Ratios count with equal numbers of tokens only: with fewer, prefill has a greater share.
    """
    found = []
    for aim in aims:
        row, base = rows.get((aim.contender, aim.streams)), rows.get((aim.base, aim.streams))
        if row and base and row.tokens == base.tokens:
            value = ratio(row.figures(aim.figure), base.figures(aim.figure))
            if value:
                found.append((aim, value))
    return found
