"""Rows in a layout, whose logits are looked at in every step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from headrace_runner.engine.text.layout import as_tokens
from headrace_runner.engine.text.layouts import choose_layout
from tests.unit.engine.tiny import VOCABULARY, tiny_model

Floats = npt.NDArray[np.float32]

STOCK = ("gemma3_text", "lfm2")
ARCHITECTURES = ("llama", *STOCK)
MIB = 1 << 20


def tokens_of(source: random.Random, length: int) -> list[int]:
    return [source.randrange(VOCABULARY) for _ in range(length)]


def last_logits(model: Any, tokens: Sequence[int]) -> Floats:
    """The logits after the last token, without any cache."""
    logits: Floats = np.array(model(mx.array([list(tokens)])))[0, -1]
    return logits


def close(found: mx.array, wanted: Floats) -> bool:
    return bool(np.abs(np.array(found) - wanted).max() < 1e-4 * np.abs(wanted).max())


class Rows:
    """A layout, the rows in it with their tokens, and the model without any cache."""

    def __init__(self, plain: Any, layout: Any) -> None:
        self.plain = plain
        self.layout = layout
        self.tokens: dict[int, list[int]] = {}
        self._firsts: dict[int, int] = {}
        self._uids = count()

    def prefill(
        self, tokens: list[int], *, borders: Sequence[int] = (), chunk: int = 16, upto: int = 0
    ) -> Any:
        """A row in prefill, with all of its tokens but the last, or the first `upto`."""
        state = self.layout.begin(as_tokens(tokens), borders)
        while (left := (upto or len(tokens) - 1) - state.length) > 0:
            some = self.layout.chunk(state, min(chunk, left))
            assert 1 <= some <= min(chunk, left)
            self.layout.prefill([(state, tokens[state.length : state.length + some])])
        return state

    def join(self, *rows: tuple[list[int], Any]) -> list[int]:
        """Has states decode; gives the numbers of their rows."""
        uids = [next(self._uids) for _ in rows]
        self.layout.join([(uid, state) for uid, (_, state) in zip(uids, rows, strict=True)])
        # The last token of each prompt is the first input.
        self.tokens |= {uid: list(tokens[:-1]) for uid, (tokens, _) in zip(uids, rows, strict=True)}
        self._firsts |= {uid: tokens[-1] for uid, (tokens, _) in zip(uids, rows, strict=True)}
        return uids

    def start(self, tokens: list[int], *, chunk: int = 16) -> int:
        """A row from its prompt to its decoding."""
        (uid,) = self.join((tokens, self.prefill(tokens, chunk=chunk)))
        return uid

    def keep(self, uids: set[int]) -> None:
        self.layout.keep(uids)
        self.tokens = {uid: tokens for uid, tokens in self.tokens.items() if uid in uids}

    def step(self, source: random.Random) -> None:
        """One more token for every row, and a look at its logits."""
        order = self.layout.order
        assert sorted(order) == sorted(self.tokens)
        inputs = [self._firsts.pop(uid, source.randrange(VOCABULARY)) for uid in order]
        logits, _ = self.layout.decode(mx.array(inputs, mx.uint32))
        assert logits.shape == (len(order), VOCABULARY)
        for uid, token, row in zip(order, inputs, logits, strict=True):
            self.tokens[uid].append(token)
            assert close(row, last_logits(self.plain, self.tokens[uid])), uid


def rows_of(architecture: str, *, on_cpu: bool = True, prefix_bytes: int = 64 * MIB) -> Rows:
    model = tiny_model(architecture)
    layout = choose_layout(model, on_cpu=on_cpu, prefix_bytes=prefix_bytes)
    return Rows(tiny_model(architecture), layout)
