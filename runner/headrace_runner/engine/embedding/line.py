"""The line of requests for embeddings, and which of their inputs are computed together. Pure.

A batch is padded to its longest row, so it takes rows that are about equally long. Requests take
turns: each batch begins with the one whose turn it is, and what it leaves room for is filled with
rows of the others. So a large request never holds up a small one for longer than a batch of each
that came before it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SHARE = 0.75
"""A row joins a batch if it is at least so long, as a part of the longest."""
_SHORT = 8
"""Tokens that a row may always be short of it."""


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """One input of a request that waits."""

    length: int
    """Tokens."""
    uid: int
    """Of the request."""
    index: int
    """Of the input in it."""


@dataclass(slots=True)
class _Waiting:
    rows: list[Row]
    """By length."""
    alone: bool = False
    """Whether it shares no batch with others any more."""


class Line:
    """Requests that have rows to compute, in the order of their turns."""

    def __init__(self) -> None:
        self._waiting: dict[int, _Waiting] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, uid: int, lengths: Sequence[int]) -> None:
        """Puts a request at the end. `lengths`: tokens of each of its inputs."""
        rows = sorted(Row(length, uid, index) for index, length in enumerate(lengths))
        self._waiting[uid] = _Waiting(rows)

    def drop(self, uid: int) -> None:
        """Forgets what is left of a request."""
        self._waiting.pop(uid, None)

    def longest(self) -> Row | None:
        """The row that the next batch begins with: the longest of the request whose turn it is."""
        first = next(iter(self._waiting.values()), None)
        return None if first is None else first.rows[-1]

    def take(self, budget: int, most: int) -> list[Row]:
        """The next batch, of `most` requests at most. Whose turn it was goes to the end.

        Rows times the length of the longest of them come to no more than `budget` tokens, unless
        the first row alone does. Nothing: the line is empty.
        """
        first = self.longest()
        if first is None:
            return []
        room = max(1, budget // first.length)
        least = min(first.length - _SHORT, int(first.length * _SHARE))
        batch: list[Row] = []
        alone = self._waiting[first.uid].alone
        sharing = 0
        for uid, waiting in list(self._waiting.items()):
            if uid != first.uid and (alone or waiting.alone):
                continue
            found = _fitting(waiting.rows, least, first.length, room - len(batch))
            batch += found
            sharing += bool(found)
            if not waiting.rows:
                del self._waiting[uid]
            if len(batch) == room or sharing == most:
                break
        if (turned := self._waiting.pop(first.uid, None)) is not None:
            self._waiting[first.uid] = turned
        return batch

    def put_back(self, rows: Iterable[Row], *, alone: bool = False) -> None:
        """Rows that were taken in vain. From now on their requests share no batch if `alone`."""
        for row in rows:
            waiting = self._waiting.setdefault(row.uid, _Waiting([]))
            waiting.alone = waiting.alone or alone
            insort(waiting.rows, row)


def _fitting(rows: list[Row], least: int, longest: int, most: int) -> list[Row]:
    """Takes out the longest rows within two lengths, `most` at most."""
    end = bisect_left(rows, longest + 1, key=lambda row: row.length)
    begin = max(bisect_left(rows, least, key=lambda row: row.length), end - most)
    taken = rows[begin:end]
    del rows[begin:end]
    return taken
