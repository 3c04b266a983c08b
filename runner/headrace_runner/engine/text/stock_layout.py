"""The layout of all other models, on mlx-lm's own caches: rotating ones, recurrent states, lists.

Such a cache cannot be cut at any token, so what is remembered are checkpoints: whole caches, good
for prompts that begin with all of their tokens.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from headrace_runner.engine.text.layout import Piece
from headrace_runner.engine.text.prefix_cache import PrefixCache, Tokens
from headrace_runner.models.insides import new_caches
from headrace_runner.models.lora import Mixture

_BORDERS = 2
"""Checkpoints inside a prompt, beside the one at its end: at its last borders."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The caches of all layers after a run of tokens. Never written to."""

    caches: tuple[Any, ...]
    nbytes: int


class StockState:
    """A row in prefill, with caches of its own."""

    def __init__(
        self,
        caches: list[Any],
        length: int,
        tokens: Tokens,
        stops: list[int],
        adapter: str | None = None,
    ) -> None:
        self.caches = caches
        self.adapter = adapter
        self.length = length
        self.tokens = tokens
        self.stops = stops
        """Where to take a checkpoint, in order."""

    @property
    def nbytes(self) -> int:
        return _nbytes(self.caches)


class StockLayout:
    """Rows in mlx-lm's batch caches. A prompt is prefilled alone."""

    drafts = False
    together = 0

    def __init__(self, model: Any, *, prefix_bytes: int, mixture: Mixture | None = None) -> None:
        """`mixture`: what adapters of the model go by, if it may have any."""
        self._model = model
        self._mixture = mixture or Mixture()
        self._batch: list[Any] = []
        self.order: list[int] = []
        self._adapters: dict[int, str | None] = {}
        """Of the rows that decode."""
        self.prefixes: PrefixCache[Checkpoint] = PrefixCache(prefix_bytes)
        probe = new_caches(model)
        mx.eval(model(mx.array([[0]]), cache=probe))
        self._shapes = [shape for cache in probe for shape in _shapes(cache)]

    @property
    def nbytes(self) -> int:
        return _nbytes(self._batch) + self.prefixes.nbytes

    @property
    def remembered_bytes(self) -> int:
        return self.prefixes.nbytes

    def row_bytes(self, tokens: int) -> int:
        return sum(each * min(tokens, most) for each, most in self._shapes)

    def begin(
        self,
        tokens: Tokens,
        borders: Sequence[int],
        beyond: int = 0,
        adapter: str | None = None,
    ) -> StockState:
        last = len(tokens) - 1
        match = self.prefixes.match(tokens, last, adapter)
        length = match.reusable
        caches = list(_copies(match.pieces[-1].value.caches)) if length else new_caches(self._model)
        # Where others went another way is a border too.
        wanted = {*borders[-_BORDERS:], match.length}
        stops = sorted(place for place in wanted if length < place < last)
        return StockState(caches, length, tokens, [*stops, last], adapter)

    def chunk(self, state: StockState, wanted: int) -> int:
        return min(wanted, state.stops[0] - state.length)

    def prefill(self, chunks: Sequence[tuple[StockState, Sequence[int]]]) -> None:
        for state, chunk in chunks:
            with self._mixture.of([(state.adapter, 1)]):
                self._model(mx.array(list(chunk))[None], cache=state.caches)
            mx.eval([cache.state for cache in state.caches])
            state.length += len(chunk)
            if state.stops and state.length == state.stops[0]:
                state.stops.pop(0)
                self.remember(state.tokens, state)

    def score(self, pieces: Sequence[Piece[StockState]]) -> tuple[mx.array, list[mx.array]]:
        found = [logits for piece in pieces for logits in self._score(piece)]
        return mx.concatenate(found) if found else mx.zeros((0, 0)), []

    def _score(self, piece: Piece[StockState]) -> Iterator[mx.array]:
        """Each branch alone, on copies of the caches."""
        state, branches = piece.state, [branch for branch in piece.branches if branch]
        wanted = piece.wanted - sum(map(len, branches))
        done, silent = 0, len(piece.trunk) - wanted
        while done < silent:
            count = self.chunk(state, silent - done)
            self.prefill([(state, piece.trunk[done : done + count])])
            done += count
        if wanted:
            yield self._logits(piece.trunk[silent:], state.caches, state.adapter)
            state.length += wanted
        for branch in branches:
            yield self._logits(branch, _copies(state.caches), state.adapter)

    def _logits(self, tokens: Sequence[int], caches: list[Any], adapter: str | None) -> mx.array:
        with self._mixture.of([(adapter, 1)]):
            logits: mx.array = self._model(mx.array(list(tokens))[None], cache=caches)[0]
        # At once, so that one branch's caches are there at a time.
        mx.eval(logits, [cache.state for cache in caches])
        return logits

    def mark(self, state: StockState) -> tuple[int, list[Any]]:
        return state.length, _copies(state.caches)

    def back(self, state: StockState, mark: tuple[int, list[Any]]) -> None:
        state.length, caches = mark
        state.caches = _copies(caches)

    def join(self, rows: Sequence[tuple[int, StockState]], soon: Sequence[int] = ()) -> None:
        layers = zip(*(state.caches for _, state in rows), strict=True)
        merged = [type(row_caches[0]).merge(list(row_caches)) for row_caches in layers]
        if self.order:
            for cache, other in zip(self._batch, merged, strict=True):
                cache.extend(other)
        else:
            self._batch = merged
        self.order = self.order + [uid for uid, _ in rows]
        self._adapters |= {uid: state.adapter for uid, state in rows}

    def keep(self, rows: set[int]) -> None:
        kept = [place for place, uid in enumerate(self.order) if uid in rows]
        if len(kept) == len(self.order):
            return
        self.order = [self.order[place] for place in kept]
        self._adapters = {uid: self._adapters[uid] for uid in self.order}
        if not kept:
            self._batch = []
        for cache in self._batch:
            cache.filter(mx.array(kept))

    def decode(
        self, inputs: mx.array, chunks: Sequence[tuple[StockState, Sequence[int]]] = ()
    ) -> tuple[mx.array, list[mx.array]]:
        if chunks:
            raise NotImplementedError("prompts in the same pass")
        with self._mixture.of([(self._adapters[uid], 1) for uid in self.order]):
            logits: mx.array = self._model(inputs[:, None], cache=self._batch)
        return logits[:, -1, :], []

    def draft(self, inputs: mx.array) -> mx.array:
        raise NotImplementedError("states that cannot be taken back")

    def undo(self, tokens: int) -> None:
        raise NotImplementedError("states that cannot be taken back")

    def remember(self, tokens: Tokens, state: StockState) -> None:
        if state.length:
            caches = tuple(_copies(state.caches))
            checkpoint = Checkpoint(caches, _nbytes(caches))
            self.prefixes.insert(
                tokens[: state.length], lambda start, end: checkpoint, state.adapter
            )

    def remember_row(self, tokens: Tokens, row: int) -> None:
        # What a batch's row would give is good for its very last token alone, which a row that
        # ended before the one that was under way has passed already.
        pass

    def forget(self, to_bytes: int = 0) -> None:
        self.prefixes.shrink(to_bytes)

    def reset(self) -> None:
        self._batch, self.order, self._adapters = [], [], {}


def _copies(caches: Sequence[Any]) -> list[Any]:
    """Caches of the same contents, which share memory until one of them is written to."""
    return [_copied(cache) for cache in caches]


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_copied(item) for item in value)
    fresh = copy.copy(value)
    if not isinstance(value, mx.array) and hasattr(value, "__dict__"):
        for name, item in vars(value).items():
            if isinstance(item, mx.array | list | tuple):
                setattr(fresh, name, _copied(item))
    return fresh


def _nbytes(caches: Sequence[Any]) -> int:
    return sum(int(cache.nbytes) for cache in caches)


def _shapes(cache: Any) -> Iterator[tuple[int, int]]:
    """Bytes of a token in a cache, and how many tokens it keeps at most."""
    if hasattr(cache, "caches"):
        for inner in cache.caches:
            yield from _shapes(inner)
    elif isinstance(keys := getattr(cache, "keys", None), mx.array):
        size = sum(a.shape[1] * a.shape[3] * a.dtype.size for a in (keys, cache.values))
        yield size, getattr(cache, "max_size", None) or sys.maxsize
    else:
        yield int(cache.nbytes), 1  # A state, which does not grow.
