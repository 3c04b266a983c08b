"""Keys and values of the rows of a model whose layers attend over everything that was before.

Rows that decode have theirs in windows: one array a layer for many rows, which all end at the same
place, so that a step writes one slice. A row joins and leaves by being copied alone. Rows of very
different lengths belong in different windows, since each takes up the room of its window's longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

_STEP = 256
"""Tokens by which a window grows."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Keys and values of a run of tokens, [1, heads, tokens, dimensions] a layer. Immutable."""

    keys: tuple[mx.array, ...]
    values: tuple[mx.array, ...]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (*self.keys, *self.values))

    def __len__(self) -> int:
        return int(self.keys[0].shape[2])

    def part(self, start: int, end: int) -> Segment:
        """Some of it; a copy, so that it does not hold on to the whole."""
        if (start, end) == (0, len(self)):
            return self
        keys = tuple(mx.contiguous(k[:, :, start:end]) for k in self.keys)
        values = tuple(mx.contiguous(v[:, :, start:end]) for v in self.values)
        mx.eval(keys, values)
        return Segment(keys, values)

    def divide(self, at: int) -> tuple[Segment, Segment]:
        """The tokens before `at`, and the others."""
        return self.part(0, at), self.part(at, len(self))


class Prompt:
    """A row in prefill: room for the keys and values of all its tokens, and how many are there."""

    def __init__(self, room: int, adapter: str | None = None) -> None:
        """`adapter`: the key of the one that it is computed with."""
        self.length = 0
        self.adapter = adapter
        self._room = room
        self._keys: list[mx.array] = []
        self._values: list[mx.array] = []

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (*self._keys, *self._values))

    def fill(self, pieces: Sequence[tuple[Segment, int]]) -> None:
        """Begins with tokens that were computed before: of each segment its first so many."""
        for segment, taken in pieces:
            for layer, (keys, values) in enumerate(zip(segment.keys, segment.values, strict=True)):
                self._write(layer, keys[:, :, :taken], values[:, :, :taken])
            self.length += taken
        mx.eval(self.state())

    def segment(self) -> Segment:
        """All that is there."""
        return self.part(0, self.length)

    def part(self, start: int, end: int) -> Segment:
        """Some of what is there."""
        return Segment(tuple(self._keys), tuple(self._values)).part(start, end)

    def extend(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Adds new tokens of a layer; gives all up to them."""
        self._write(layer, keys, values)
        end = self.length + keys.shape[2]
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def _write(self, layer: int, keys: mx.array, values: mx.array) -> None:
        if layer == len(self._keys):
            self._keys.append(_room(keys, 1, self._room))
            self._values.append(_room(values, 1, self._room))
        end = self.length + keys.shape[2]
        self._keys[layer][:, :, self.length : end] = keys
        self._values[layer][:, :, self.length : end] = values

    def state(self) -> list[mx.array]:
        """What a pass over this row has to evaluate."""
        return [*self._keys, *self._values]


class Window:
    """Rows that decode together: keys and values, [rows, heads, tokens, dimensions] a layer.

    All rows end at `end`; row i begins at `starts[i]`, and what is before that is not its own.
    """

    def __init__(self) -> None:
        self.uids: list[int] = []
        self.starts: list[int] = []
        self.end = 0
        self._keys: list[mx.array] = []
        self._values: list[mx.array] = []

    def __len__(self) -> int:
        return len(self.uids)

    @property
    def begin(self) -> int:
        """Where the longest row begins."""
        return min(self.starts, default=self.end)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (*self._keys, *self._values))

    def suits(self, *lengths: int) -> bool:
        """Whether no row, with some of these lengths, would waste more than a part of its place.

        Beside what a window may have to spare anyway: `_STEP`.
        """
        all_ = [*lengths, *(self.end - start for start in self.starts)]
        return max(all_) <= 1.25 * min(all_) + _STEP

    def length(self, uid: int) -> int:
        """Tokens of a row."""
        return self.end - self.starts[self.uids.index(uid)]

    def join(self, uid: int, segment: Segment, more: Sequence[int] = ()) -> None:
        """Adds a row, after those that are there; `more` rows of such lengths will join after it.

        Room that has to be made for this one is made for them too.
        """
        if not self._keys:
            self._keys = [mx.zeros((0, *k.shape[1:]), k.dtype) for k in segment.keys]
            self._values = [mx.zeros((0, *v.shape[1:]), v.dtype) for v in segment.values]
        self._make_room(len(segment), more)
        row, start = slice(len(self), len(self) + 1), self.end - len(segment)
        for layer in range(len(self._keys)):
            # The front of the row too: what an earlier row left there must not be seen.
            for ours, theirs in self._both(layer, segment.keys[layer], segment.values[layer]):
                ours[row, :, : self.end] = mx.pad(theirs, [(0, 0), (0, 0), (start, 0), (0, 0)])
        self.uids.append(uid)
        self.starts.append(start)

    def keep(self, uids: set[int]) -> None:
        """Drops all other rows; the last ones take their places."""
        if not uids.intersection(self.uids):
            self.uids, self.starts, self.end = [], [], 0
            self._keys, self._values = [], []
            return
        origin = list(range(len(self)))
        for row in reversed(range(len(self))):
            if self.uids[row] not in uids:
                origin[row] = origin[-1]
                origin.pop()
        moves = [(source, row) for row, source in enumerate(origin) if source != row]
        live = slice(self.begin, self.end)
        for arrays in (self._keys, self._values) if moves else ():
            # Added to nothing, since a mere view would have the whole array copied when the row
            # is written into it.
            rows = [
                [array[source : source + 1, :, live] + 0 for source, _ in moves] for array in arrays
            ]
            mx.eval(rows)
            for array, copies in zip(arrays, rows, strict=True):
                for (_, row), copy in zip(moves, copies, strict=True):
                    array[row : row + 1, :, live] = copy
        self.uids = [self.uids[source] for source in origin]
        self.starts = [self.starts[source] for source in origin]
        if len(self) <= self._keys[0].shape[0] // 4:
            self._rebuild(len(self), self._width)

    def segment(self, uid: int, start: int, end: int) -> Segment:
        """A copy of a row's tokens from `start` to `end`, counted from its first."""
        row = self.uids.index(uid)
        places = slice(self.starts[row] + start, self.starts[row] + end)
        copies = [
            tuple(array[row : row + 1, :, places] + 0 for array in arrays)
            for arrays in (self._keys, self._values)
        ]
        mx.eval(copies)
        return Segment(*copies)

    def ready(self, tokens: int) -> None:
        """Makes room for so many new tokens of each row."""
        if self.end + tokens > self._keys[0].shape[2]:
            self._rebuild(len(self), self._width, tokens)

    def extend(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Writes as many new tokens to each row; gives all from the longest row's first."""
        rows, end = len(self), self.end + keys.shape[2]
        for ours, new in self._both(layer, keys, values):
            ours[:rows, :, self.end : end] = new
        live = slice(self.begin, end)
        return self._keys[layer][:rows, :, live], self._values[layer][:rows, :, live]

    def _both(
        self, layer: int, keys: mx.array, values: mx.array
    ) -> Iterator[tuple[mx.array, mx.array]]:
        yield self._keys[layer], keys
        yield self._values[layer], values

    def _make_room(self, length: int, more: Sequence[int]) -> None:
        rows, (have, _, tokens, _) = len(self) + 1, self._keys[0].shape
        if rows > have or length > self.end or self.end >= tokens:
            # One row in eight to spare, which leaves room in what rows have reserved.
            rows = max(have, rows + rows // 8, rows + len(more))
            self._rebuild(rows, max(length, self._width, *more))

    @property
    def _width(self) -> int:
        return self.end - self.begin

    def _rebuild(self, rows: int, width: int, new: int = 1) -> None:
        """Moves what lives to new arrays, for `rows` rows of `width` tokens and some new ones."""
        tokens = -(-(width + new) // _STEP) * _STEP
        live, shift = slice(self.begin, self.end), width - self.end
        for arrays in (self._keys, self._values):
            for layer, old in enumerate(arrays):
                arrays[layer] = _room(old, rows, tokens)
                if len(self):
                    there = slice(live.start + shift, width)
                    arrays[layer][: len(self), :, there] = old[: len(self), :, live]
                # One layer at a time, so that the old arrays are not all needed beside the new.
                mx.eval(arrays[layer])
        self.starts = [start + shift for start in self.starts]
        self.end = width


def _room(like: mx.array, rows: int, tokens: int) -> mx.array:
    return mx.zeros((rows, like.shape[1], tokens, like.shape[3]), like.dtype)
