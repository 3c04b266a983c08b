"""The layout of models whose layers all attend over everything that was before."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from headrace_runner.engine.text.flat import FlatPass
from headrace_runner.engine.text.layout import Piece
from headrace_runner.engine.text.prefix_cache import PrefixCache, Tokens
from headrace_runner.engine.text.windows import Prompt, Segment, Window

_SOON = 256
"""Tokens of a row for which room is made before it comes, at most: until it joins, what is computed
of its prompt is held as well."""


class FlatLayout:
    """Rows in windows, prompts prefilled together, and what was computed cached by prefix.

    A hit is copied once, into the row's own place, where it has to be for attention anyway.
    """

    drafts = True

    def __init__(self, flat: FlatPass, nothing: Segment, prefix_bytes: int) -> None:
        """`nothing`: keys and values of no tokens, in the model's shapes."""
        self._pass = flat
        self.together = flat.beside
        self._nothing = nothing
        self._windows: list[Window] = []
        self._adapters: dict[int, str] = {}
        """Of the rows that decode and have one."""
        self.prefixes: PrefixCache[Segment] = PrefixCache(prefix_bytes, Segment.divide)

    @property
    def order(self) -> list[int]:
        return [uid for window in self._windows for uid in window.uids]

    @property
    def nbytes(self) -> int:
        return sum(window.nbytes for window in self._windows) + self.prefixes.nbytes

    @property
    def remembered_bytes(self) -> int:
        return self.prefixes.nbytes

    def row_bytes(self, tokens: int) -> int:
        arrays = (*self._nothing.keys, *self._nothing.values)
        return tokens * sum(a.shape[1] * a.shape[3] * a.dtype.size for a in arrays)

    def begin(
        self,
        tokens: Tokens,
        borders: Sequence[int],
        beyond: int = 0,
        adapter: str | None = None,
    ) -> Prompt:
        # The last token is left to the first step of decoding, which needs one, or to `score`.
        last = len(tokens) - 1
        prompt = Prompt(last + beyond, adapter)
        match = self.prefixes.match(tokens, last, adapter)
        if match.pieces:
            prompt.fill([(piece.value, piece.taken) for piece in match.pieces])
        return prompt

    def chunk(self, state: Prompt, wanted: int) -> int:
        return wanted

    def prefill(self, chunks: Sequence[tuple[Prompt, Sequence[int]]]) -> None:
        self._pass.prefill(chunks)

    def score(self, pieces: Sequence[Piece[Prompt]]) -> tuple[mx.array, list[mx.array]]:
        logits = self._pass.score(pieces)
        return logits, [array for piece in pieces for array in piece.state.state()]

    def mark(self, state: Prompt) -> int:
        return state.length

    def back(self, state: Prompt, mark: int) -> None:
        state.length = mark

    def join(self, rows: Sequence[tuple[int, Prompt]], soon: Sequence[int] = ()) -> None:
        self._adapters |= {uid: row.adapter for uid, row in rows if row.adapter is not None}
        left = sorted(rows, key=lambda row: -row[1].length)
        while left:
            longest = left[0][1].length
            window = next((w for w in self._windows if w.suits(longest)), None)
            if window is None:
                window = Window()
                self._windows.append(window)
            mine = [row for row in left if window.suits(longest, row[1].length)]
            more = [length for length in soon if length <= _SOON and window.suits(longest, length)]
            more += [prompt.length for _, prompt in reversed(mine)]
            for uid, prompt in mine:
                segment = prompt.segment() if prompt.length else self._nothing
                more.pop()
                window.join(uid, segment, more)
            left = [row for row in left if row not in mine]

    def keep(self, rows: set[int]) -> None:
        self._adapters = {uid: key for uid, key in self._adapters.items() if uid in rows}
        for window in self._windows:
            window.keep(rows)
        self._windows = [window for window in self._windows if window]

    def decode(
        self, inputs: mx.array, chunks: Sequence[tuple[Prompt, Sequence[int]]] = ()
    ) -> tuple[mx.array, list[mx.array]]:
        logits = self._pass.decode(self._windows, inputs, chunks=chunks, adapters=self._adapters)
        return logits, [array for prompt, _ in chunks for array in prompt.state()]

    def draft(self, inputs: mx.array) -> mx.array:
        return self._pass.decode(self._windows, inputs, inputs.shape[0], adapters=self._adapters)

    def undo(self, tokens: int) -> None:
        self._windows[0].end -= tokens

    def remember(self, tokens: Tokens, state: Prompt) -> None:
        if state.length:
            self.prefixes.insert(tokens[: state.length], state.part, state.adapter)

    def remember_row(self, tokens: Tokens, row: int) -> None:
        window = next(window for window in self._windows if row in window.uids)
        tokens = tokens[: window.length(row)]
        space = self._adapters.get(row)
        self.prefixes.insert(tokens, lambda start, end: window.segment(row, start, end), space)

    def forget(self, to_bytes: int = 0) -> None:
        self.prefixes.shrink(to_bytes)

    def reset(self) -> None:
        self._windows, self._adapters = [], {}
