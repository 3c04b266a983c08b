"""Rows of a batch as the host knows them: what they begin with, what they have drawn, who waits.

Plain values. Nothing here computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace_runner.engine.text.drafts import Drafting
from headrace_runner.engine.text.guide import Guide
from headrace_runner.engine.text.logprobs import Logprobs
from headrace_runner.engine.text.sampling import SamplerRow, SamplingParams


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row to add."""

    uid: int
    """Greater than those of all rows before."""
    sampling: SamplingParams
    top_logprobs: int | None = None
    guide: Guide | None = None
    """Has taken what the row drew before it was added, and takes what it draws."""
    adapter: str | None = None
    """The key of the one that it is computed with; of all rows that begin with one prompt the same,
    and in memory as long as the row is computed."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token that a row has drawn."""

    uid: int
    token: int
    logprobs: Logprobs | None
    fault: Exception | None = None
    """Why the token need be none that the row's guide allows."""


@dataclass(frozen=True, slots=True)
class Prefilled:
    """How much of a prompt has been computed, in tokens."""

    uid: int
    """Of the first row that begins with it."""
    done: int
    total: int
    cached: int
    """How many of them need not be computed."""


@dataclass(slots=True)
class Row:
    new: NewRow
    context: list[int]
    """The tokens that its prefill is about."""
    before: int
    """How many of these it drew itself, before it was resumed."""
    priority: int
    tokens: list[int] = field(default_factory=list)
    """What it has drawn since, as far as it was read."""
    sampler: SamplerRow = field(init=False)
    in_flight: bool = False
    """Whether a draw of its is under way."""
    drafting: Drafting | None = None
    """Once it has been alone."""
    fault: Exception | None = None
    """Why its guide can no longer tell what may come next."""

    def __post_init__(self) -> None:
        self.sampler = SamplerRow.start(self.new.sampling, self.context[:-1])

    @property
    def position(self) -> int:
        """Of the next draw, in the row's output."""
        return self.before + len(self.tokens) + self.in_flight

    @property
    def known(self) -> list[int]:
        """All its tokens, but for one in flight."""
        return [*self.context, *self.tokens]


@dataclass(slots=True, eq=False)
class Joining:
    """Rows that begin with one prompt, which is being prefilled."""

    tokens: list[int]
    rows: list[Row]
    priority: int
    borders: Sequence[int]
    state: Any = None
    cached: int = 0

    @property
    def uid(self) -> int:
        return self.rows[0].new.uid

    @property
    def adapter(self) -> str | None:
        return self.rows[0].new.adapter

    @property
    def remaining(self) -> int:
        """Tokens to compute. The last one is left to the first step of decoding."""
        return len(self.tokens) - 1 - (0 if self.state is None else int(self.state.length))


def again(row: Row) -> Joining:
    """Has a row begin anew where it is. Its draws depend on nothing but its tokens."""
    tokens = row.known
    fresh = Row(row.new, tokens, row.before + len(row.tokens), row.priority)
    return Joining(tokens, [fresh], row.priority, ())
