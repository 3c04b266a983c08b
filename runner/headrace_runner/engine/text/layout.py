"""What a batch needs of the caches behind its rows, whatever kind they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import mlx.core as mx
import numpy as np

from headrace_runner.engine.text.prefix_cache import Tokens


class State(Protocol):
    """A row in prefill."""

    length: int
    """Tokens that are computed."""

    @property
    def nbytes(self) -> int: ...


S = TypeVar("S", bound=State)


@dataclass(frozen=True, slots=True)
class Piece(Generic[S]):
    """Tokens to compute of a row in prefill whose logits are wanted."""

    state: S
    trunk: Sequence[int]
    """Its next tokens."""
    branches: Sequence[Sequence[int]] = ()
    """Tokens that each follow the trunk, and of which nothing is kept."""
    wanted: int = 0
    """Of how many of the last tokens, those of the trunk before those of the branches."""


class Layout(Protocol[S]):
    """The caches of all rows of one model, and the passes that fill them.

    Rows are known by number. Those that decode have an order, which changes when one joins or
    leaves. Everything belongs to one thread.
    """

    together: int
    """Prompt tokens that can be computed in the same pass as the rows that decode, at most."""

    drafts: bool
    """Whether `draft` and `undo` are possible."""

    @property
    def order(self) -> list[int]:
        """The rows that decode, as `decode` takes and gives them."""

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that decode, and of what is remembered."""

    @property
    def remembered_bytes(self) -> int:
        """Bytes of what is remembered."""

    def row_bytes(self, tokens: int) -> int:
        """Bytes of the keys and values of a row of so many tokens."""

    def begin(
        self,
        tokens: Tokens,
        borders: Sequence[int],
        beyond: int = 0,
        adapter: str | None = None,
    ) -> S:
        """A new row in prefill, with the beginning of `tokens` that is remembered.

        It has the adapter of this key wherever it is computed, and what is remembered of it is for
        those that have the same.

        At `borders` (places between two tokens) other prompts are likely to go another way.
        `beyond`: tokens that `score` may have in the row at once, the last of these among them.
        """

    def chunk(self, state: S, wanted: int) -> int:
        """How many of the next `wanted` tokens can be computed at once, one at least."""

    def prefill(self, chunks: Sequence[tuple[S, Sequence[int]]]) -> None:
        """Computes the next tokens of rows in prefill."""

    def score(self, pieces: Sequence[Piece[S]]) -> tuple[mx.array, list[mx.array]]:
        """The logits that are wanted of all pieces, [tokens, vocabulary], and what has to be
        evaluated beside them. Lazy. The pieces are of different rows, which `begin` gave room."""

    def mark(self, state: S) -> Any:
        """Where a row in prefill is, for `back`."""

    def back(self, state: S, mark: Any) -> None:
        """Takes back what a row in prefill has had since, that is, is as it was at the mark."""

    def join(self, rows: Sequence[tuple[int, S]], soon: Sequence[int] = ()) -> None:
        """Has rows decode whose prefill is done. Several may begin with one state.

        `soon`: the lengths, in tokens, of rows that will join before long, for which room may be
        made at once. Their memory has been reserved.
        """

    def keep(self, rows: set[int]) -> None:
        """Drops all other rows that decode."""

    def decode(
        self, inputs: mx.array, chunks: Sequence[tuple[S, Sequence[int]]] = ()
    ) -> tuple[mx.array, list[mx.array]]:
        """Logits, [rows, vocabulary], after one more token of every row, [rows]. Lazy.

        With the next tokens of rows in prefill, where `together`; then what has to be evaluated for
        them, too.
        """

    def draft(self, inputs: mx.array) -> mx.array:
        """Logits, [tokens, vocabulary], after each of several more tokens of the only row. Lazy."""

    def undo(self, tokens: int) -> None:
        """Takes back the last tokens of the only row."""

    def remember(self, tokens: Tokens, state: S) -> None:
        """Keeps what a row in prefill has computed, the beginning of `tokens`."""

    def remember_row(self, tokens: Tokens, row: int) -> None:
        """Keeps what a row that decodes has computed, of which `tokens` is a beginning."""

    def forget(self, to_bytes: int = 0) -> None:
        """Drops what is remembered, least recently used first, down to so many bytes."""

    def reset(self) -> None:
        """Drops all rows that decode."""


def as_tokens(tokens: Sequence[int]) -> Tokens:
    """Token ids as the prefix cache wants them."""
    return np.asarray(tokens, np.int32)
