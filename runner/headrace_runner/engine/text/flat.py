"""Forward passes over rows of any lengths, without padding.

A pass takes the new tokens of many rows one after another, as so many rows of one token each: what
works on single tokens (projections, norms, the feed-forward part) is one operation over them all,
whatever rows they belong to; attention alone takes the rows apart. For models whose layers all
attend over everything that was before; `choose_layout` finds out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from headrace_runner.engine.text.attention import Attend, Keep, Way
from headrace_runner.engine.text.layout import Piece
from headrace_runner.engine.text.windows import Prompt, Window
from headrace_runner.models.fast_paths import Head
from headrace_runner.models.lora import Mixture, Run

_NONE: Mapping[int, str] = MappingProxyType({})
_WITH_LOGITS = 64
"""Prompt tokens beside rows that decode where their logits are computed too."""


class _Part(Protocol):
    """Some neighbouring tokens of a pass, and where their keys and values go."""

    tokens: int

    def positions(self) -> list[int]: ...
    def adapters(self) -> list[Run]: ...
    def attend(
        self, layer: int, queries: mx.array, keys: mx.array, values: mx.array, scale: float
    ) -> mx.array: ...


class _PromptPart:
    """The next tokens of one row in prefill, and branches that each follow them."""

    def __init__(
        self, prompt: Prompt, trunk: int, attend: Attend, branches: Sequence[int] = ()
    ) -> None:
        """`trunk` and `branches`: how many tokens."""
        self.tokens = trunk + sum(branches)
        self._prompt = prompt
        self._trunk = trunk
        self._branches = branches
        self._attend = attend
        self._apart = _apart(trunk, branches) if branches else None

    def positions(self) -> list[int]:
        start, fork = self._prompt.length, self._prompt.length + self._trunk
        branches = [fork + place for length in self._branches for place in range(length)]
        return [*range(start, fork), *branches]

    def adapters(self) -> list[Run]:
        return [(self._prompt.adapter, self.tokens)]

    def attend(
        self, layer: int, queries: mx.array, keys: mx.array, values: mx.array, scale: float
    ) -> mx.array:
        # [tokens, heads, 1, dimensions] is one row's [1, heads, tokens, dimensions].
        queries, keys, values = (a.swapaxes(0, 2) for a in (queries, keys, values))
        keys, values = self._prompt.extend(layer, keys, values)
        found = self._attend(queries, keys, values, scale, recent=self._apart)
        return found.swapaxes(0, 2)


def _apart(trunk: int, branches: Sequence[int]) -> mx.array:
    """What keeps branches apart, [tokens, tokens]: 0 where a query sees a key, else minus
    infinity. Each sees the trunk and itself."""
    owner = np.repeat(np.arange(len(branches) + 1), [trunk, *branches])
    seen = (owner[None] == 0) | (owner[None] == owner[:, None])
    return mx.array(np.where(np.tril(seen), np.float32(0), np.float32(-np.inf)))


class _WindowPart:
    """The next token of each row of a window, or the next few of its only row."""

    def __init__(
        self, window: Window, each: int, attend: Attend, adapters: Mapping[int, str]
    ) -> None:
        """`adapters`: of the rows that have one."""
        assert each == 1 or len(window) == 1
        self.tokens = len(window) * each
        self._window = window
        self._each = each
        self._attend = attend
        self._adapters = adapters
        window.ready(each)
        self._padding: mx.array | None = None
        if max(window.starts) > window.begin:
            places = mx.arange(window.begin, window.end + each)
            starts = mx.array(window.starts)[:, None]
            padding = mx.where(places[None] < starts, -math.inf, 0.0)
            self._padding = padding[:, None, None, :]

    def positions(self) -> list[int]:
        window = self._window
        return [
            window.end - start + number for start in window.starts for number in range(self._each)
        ]

    def adapters(self) -> list[Run]:
        return [(self._adapters.get(uid), self._each) for uid in self._window.uids]

    def attend(
        self, layer: int, queries: mx.array, keys: mx.array, values: mx.array, scale: float
    ) -> mx.array:
        several = self._each > 1
        if several:
            queries, keys, values = (a.swapaxes(0, 2) for a in (queries, keys, values))
        keys, values = self._window.extend(layer, keys, values)
        found = self._attend(queries, keys, values, scale, padding=self._padding)
        return found.swapaxes(0, 2) if several else found


class _Layer:
    """What a layer of the model takes for its cache during one pass."""

    def __init__(self, number: int, parts: Sequence[_Part], offset: mx.array, keep: Keep) -> None:
        self._number = number
        self._parts = parts
        self._keep = keep
        self.offset = offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def make_mask(self, tokens: int, window_size: int | None = None, **_: object) -> None:
        if window_size is not None:
            raise NotImplementedError("a layer that attends to the last tokens only")

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        sinks: mx.array | None,
    ) -> mx.array:
        if sinks is not None:
            raise NotImplementedError("attention sinks")
        keys, values = self._keep(queries, keys, values)
        found, at = [], 0
        for part in self._parts:
            mine = slice(at, at + part.tokens)
            at = mine.stop
            found.append(part.attend(self._number, queries[mine], keys[mine], values[mine], scale))
        return found[0] if len(found) == 1 else mx.concatenate(found)


class FlatPass:
    """Runs a model over tokens of many rows at once."""

    def __init__(
        self,
        model: Any,
        layers: int,
        head: Head,
        way: Way,
        mixture: Mixture | None = None,
    ) -> None:
        """`mixture`: what adapters of the model go by, if it may have any."""
        self._model = model
        self._layers = layers
        self._head = head
        self._attend, self._keep = way
        self._mixture = mixture or Mixture()

    @property
    def beside(self) -> int:
        """Prompt tokens to compute beside rows that decode, at most.

        They are few where the logits of all of them are computed, though nobody needs these.
        """
        return sys.maxsize if self._head.used else _WITH_LOGITS

    def prefill(self, chunks: Sequence[tuple[Prompt, Sequence[int]]]) -> None:
        """Computes the next tokens of some rows in prefill."""
        # Nothing that is evaluated depends on the logits, so they are not computed.
        self._run([], chunks, mx.zeros((0,), mx.uint32), 1)
        mx.eval([prompt.state() for prompt, _ in chunks])

    def states(self, prompts: Sequence[Sequence[int]]) -> list[mx.array]:
        """What the model makes of each prompt's tokens before its head, [tokens, size] each. Lazy.

        For embeddings: prompts of any lengths in one pass. Raises NotImplementedError for a model
        whose head has not been found.
        """
        chunks = [(Prompt(len(prompt)), prompt) for prompt in prompts]
        with self._head.watched() as seen:
            self._run([], chunks, mx.zeros((0,), mx.uint32), 1)
        if not seen:
            raise NotImplementedError("a model whose head has another name")
        ends = list(accumulate(map(len, prompts)))
        return [
            seen[0][end - len(prompt) : end, 0] for prompt, end in zip(prompts, ends, strict=True)
        ]

    def score(self, pieces: Sequence[Piece[Prompt]]) -> mx.array:
        """The logits that are wanted of all pieces, [tokens, vocabulary]. Lazy.

        What a prompt is left with of its branches is to be written over.
        """
        parts, tokens, places = list[_Part](), list[int](), list[int]()
        for piece in pieces:
            lengths = [len(branch) for branch in piece.branches]
            parts.append(_PromptPart(piece.state, len(piece.trunk), self._attend, lengths))
            tokens += [*piece.trunk, *(token for branch in piece.branches for token in branch)]
            places += range(len(tokens) - piece.wanted, len(tokens))
        wanted = mx.array(places, mx.int32)
        logits = self._forward(parts, mx.array(tokens, mx.uint32), wanted)
        for piece in pieces:
            piece.state.length += len(piece.trunk)
        return logits if self._head.used else logits[wanted]

    def decode(
        self,
        windows: Sequence[Window],
        inputs: mx.array,
        each: int = 1,
        chunks: Sequence[tuple[Prompt, Sequence[int]]] = (),
        adapters: Mapping[int, str] = _NONE,
    ) -> mx.array:
        """The logits, [inputs, vocabulary], after the next token of every row. Lazy.

        `each` tokens of a row are taken where there is but one. In the same pass the next tokens of
        rows in prefill: the weights are read once for all. `adapters` are those of the windows'
        rows, by row.
        """
        return self._run(windows, chunks, inputs, each, adapters)[: inputs.shape[0]]

    def _run(
        self,
        windows: Sequence[Window],
        chunks: Sequence[tuple[Prompt, Sequence[int]]],
        inputs: mx.array,
        each: int,
        adapters: Mapping[int, str] = _NONE,
    ) -> mx.array:
        parts: list[_Part] = [
            _WindowPart(window, each, self._attend, adapters) for window in windows
        ]
        parts += [_PromptPart(prompt, len(chunk), self._attend) for prompt, chunk in chunks]
        new = mx.array([token for _, chunk in chunks for token in chunk], mx.uint32)
        tokens = mx.concatenate([inputs, new]) if chunks else inputs
        logits = self._forward(parts, tokens, slice(inputs.shape[0]))
        for window in windows:
            window.end += each
        for prompt, chunk in chunks:
            prompt.length += len(chunk)
        return logits

    def _forward(
        self, parts: Sequence[_Part], tokens: mx.array, wanted: slice | mx.array
    ) -> mx.array:
        """The logits of what is wanted of all tokens; of all where the head cannot be told."""
        offset = mx.array([place for part in parts for place in part.positions()], mx.int32)
        cache = [_Layer(number, parts, offset, self._keep) for number in range(self._layers)]
        runs = [run for part in parts for run in part.adapters()]
        with self._head.only(wanted), self._mixture.of(runs):
            logits: mx.array = self._model(tokens[:, None], cache=cache)
        return logits[:, -1, :]
