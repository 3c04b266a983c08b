"""Remembers what was computed for prompts, and finds the longest beginning of a new one in it.

A radix tree: each edge is a run of tokens and has one value, whose inside the tree never looks at.
Runs of any length, not blocks of a fixed one, because a hit is then exact to the token; because
MLX has no attention over pages, so a hit is copied together from its parts, best from few large
ones; and because runs are compared as they are, with no hash that could meet another.

Values are immutable and live as long as anyone refers to them: what is evicted while a row uses
it stays alive with that row. Not safe for use by several threads at once. Never imports MLX.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Tokens: TypeAlias = npt.NDArray[np.int32]
"""One-dimensional. A list of 32k tokens takes half a millisecond to become one: do it once."""

_WIDTH = 4
"""Bytes of a token. Edges are kept as bytes, which Python compares several times faster than it
calls NumPy for a short run; a conversation of many turns is a path of many short runs."""


class Value(Protocol):
    """What an edge can hold."""

    @property
    def nbytes(self) -> int:
        """What counts against the budget. Read once, when the cache takes the value."""


V = TypeVar("V", bound=Value)

Divide: TypeAlias = Callable[[V, int], tuple[V, V]]
"""Cuts a segment after so many of its tokens, at least one of them on either side. Halves that
share memory are both counted, but freed only together."""


class Piece(NamedTuple, Generic[V]):
    """The value of the tokens from `start` up to `end`, of which the prompt has the first `taken`.

    `taken` is less than `end - start` for the last segment alone, and never for a checkpoint.
    """

    start: int
    end: int
    taken: int
    value: V


@dataclass(frozen=True, slots=True)
class Match(Generic[V]):
    """What the cache has of a prompt."""

    length: int
    """Tokens of the longest beginning that the cache knows. Where this is more than `reusable`,
    other prompts went the same way up to here: a good place for a checkpoint."""
    pieces: tuple[Piece[V], ...]
    """The segments that make up this beginning, in order; or the last checkpoint in it, if any."""

    @property
    def reusable(self) -> int:
        """Tokens that need not be computed."""
        return self.pieces[-1].start + self.pieces[-1].taken if self.pieces else 0


@dataclass(slots=True)
class Counters:
    """What the cache has done since it was made."""

    lookups: int = 0
    hits: int = 0
    """Lookups with something to reuse."""
    asked_tokens: int = 0
    reused_tokens: int = 0
    evictions: int = 0


@dataclass(slots=True, eq=False)
class _Node(Generic[V]):
    """The end of an edge. Without a value it is a junction, of at least two edges."""

    edge: bytes
    end: int
    """Tokens from the root to here. Stays as it is when the edge above is cut or grows."""
    parent: _Node[V] | None = None
    """None for roots alone."""
    children: dict[bytes, _Node[V]] = field(default_factory=dict)
    """By the first token of their edges."""
    value: V | None = None
    nbytes: int = 0

    @property
    def start(self) -> int:
        return self.end - len(self.edge) // _WIDTH

    def adopt(self, child: _Node[V]) -> None:
        child.parent = self
        self.children[child.edge[:_WIDTH]] = child


class PrefixCache(Generic[V]):
    """Values by token prefix, within a budget of bytes; the least recently used go first.

    With `divide` the values are segments: each is of its own edge alone (keys and values cut along
    the token axis), so it can be cut anywhere and needs all those above it. A use of one is a use
    of its whole path, and of a path the last goes first. Without, they are checkpoints: each is
    the state after all tokens up to its edge's end (of a recurrent or rotating cache), whole or
    of no use, and needs no other. Then each has its own time of use, so that of one long
    conversation the early ones go and not the latest. A model with layers of both kinds takes two
    caches.

    The same tokens may have several values: each is in a `space`, such as that of an adapter, and
    found in this one alone. All spaces share the budget. The tokens themselves do not count against
    it.
    """

    def __init__(self, budget: int, divide: Divide[V] | None = None) -> None:
        """`budget` in bytes. Raises ValueError if it is negative."""
        if budget < 0:
            raise ValueError("the budget must not be negative")
        self.budget = budget
        self.counters = Counters()
        self._divide = divide
        self._order: OrderedDict[_Node[V], None] = OrderedDict()
        """The nodes with values, the least recently used first. Segments: a node comes before its
        parent, so the first is a leaf."""
        self.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self._nbytes

    @property
    def tokens(self) -> int:
        """Tokens of all edges: those of a beginning that several prompts share count once."""
        return self._tokens

    def match(self, tokens: Tokens, limit: int | None = None, space: str | None = None) -> Match[V]:
        """Find the longest beginning of `tokens`, of at most `limit` tokens, that is cached.

        What can be reused is marked as used. Give a limit of one token less than the prompt has
        where the model must compute at least one.
        """
        path, length = self._walk(_packed(tokens[:limit]), space)
        used = self._use(path, length)
        found = Match(
            length,
            tuple(
                Piece(node.start, node.end, min(node.end, length) - node.start, node.value)
                for node in used
                if node.value is not None
            ),
        )
        self.counters.lookups += 1
        self.counters.hits += bool(used)
        self.counters.asked_tokens += len(tokens)
        self.counters.reused_tokens += found.reusable
        return found

    def insert(
        self, tokens: Tokens, make: Callable[[int, int], V], space: str | None = None
    ) -> bool:
        """Have `tokens` in the cache, marked as used; tell whether they are.

        `make(start, end)` gives the value of the tokens from `start` up to `end`, which is the
        number of tokens. It is called at most once, and not for what is there: a segment begins
        where the cache's knowledge ends. What cannot be kept within the budget, with the segments
        that it needs, is not, and evicts nothing; nor does what `make` or `divide` raises change
        anything.
        """
        data = _packed(tokens)
        count = len(data) // _WIDTH
        path, length = self._walk(data, space)
        last = path[-1] if path else self._roots.get(space) or _Node(b"", 0)
        if length == count and (self._divide or not path or _is_whole(last, count)):
            self._use(path, count)
            return True

        if not self.budget:
            return False
        value = make(length if length < count else last.start, count)
        cuts = last.end > length
        upper, lower = self._halves(last, length) if cuts else (last.value, None)
        needed = _size(value)
        if self._divide:
            needed += sum(node.nbytes for node in path[:-1]) + _size(upper)
        if needed > self.budget:
            return False

        if cuts:
            last = path[-1] = self._cut(last, length, upper, lower)
        if length < count:
            leaf: _Node[V] = _Node(data[length * _WIDTH :], count)
            if last.parent is None:
                self._roots[space] = last
            last.adopt(leaf)
            path.append(leaf)
            self._tokens += count - length
        self._hold(path[-1], value)
        self._use(path, count)
        self.shrink(self.budget)
        return True

    def shrink(self, to_bytes: int) -> int:
        """Evict the least recently used until `to_bytes` or less are held; give the bytes freed."""
        before = self._nbytes
        while self._nbytes > to_bytes and self._order:
            node = next(iter(self._order))
            self._hold(node, None)
            self._tidy(node)
            self.counters.evictions += 1
        return before - self._nbytes

    def clear(self) -> None:
        """Drop everything but the counters, at once.

        A cache that is only forgotten keeps its values until the garbage collector has come by.
        """
        for node in self._order:
            node.value = None
        self._order.clear()
        self._roots: dict[str | None, _Node[V]] = {}
        """Of the spaces that hold something."""
        self._nbytes = self._tokens = 0

    def _walk(self, data: bytes, space: str | None) -> tuple[list[_Node[V]], int]:
        """The nodes of the longest path that agrees with `data`, and how many tokens agree.

        Of the last node's edge only a part may.
        """
        node, path, length = self._roots.get(space), list[_Node[V]](), 0
        while node and (child := node.children.get(data[length * _WIDTH : (length + 1) * _WIDTH])):
            path.append(child)
            if not data.startswith(child.edge, length * _WIDTH):
                return path, length + _agreement(child.edge, data, length)
            node, length = child, child.end
        return path, length

    def _use(self, path: list[_Node[V]], length: int) -> list[_Node[V]]:
        """Of a path that agrees for `length` tokens, mark and give what can be reused."""
        if self._divide is None:
            path = [node for node in path if _is_whole(node, length)][-1:]
        for node in reversed(path):
            self._order.move_to_end(node)
        return path

    def _halves(self, node: _Node[V], at: int) -> tuple[V | None, V | None]:
        if self._divide is None or node.value is None:
            return None, node.value
        return self._divide(node.value, at - node.start)

    def _cut(self, node: _Node[V], at: int, upper: V | None, lower: V | None) -> _Node[V]:
        """Cut a node's edge after the tokens up to `at`; give the new node there."""
        assert node.parent
        size = (at - node.start) * _WIDTH
        middle: _Node[V] = _Node(node.edge[:size], at)
        node.parent.adopt(middle)
        node.edge = node.edge[size:]
        middle.adopt(node)
        self._hold(middle, upper)
        self._hold(node, lower)
        return middle

    def _hold(self, node: _Node[V], value: V | None) -> None:
        """Set a node's value. One that had a value before keeps its time of use."""
        nbytes = _size(value)
        self._nbytes += nbytes - node.nbytes
        node.value, node.nbytes = value, nbytes
        if value is None:
            self._order.pop(node, None)
        else:
            self._order.setdefault(node)

    def _tidy(self, node: _Node[V]) -> None:
        """Take a node without a value out of the tree, unless it joins several edges.

        With one edge left it becomes part of that edge, which says the same: a checkpoint holds
        for the end of its edge, however long. So half of all nodes at least have values, and the
        tree is bounded by the budget.
        """
        parent = node.parent
        assert parent
        if not node.children:
            del parent.children[node.edge[:_WIDTH]]
            self._tokens -= node.end - node.start
            if parent.parent is None:
                if not parent.children:
                    self._roots = {s: root for s, root in self._roots.items() if root is not parent}
            elif parent.value is None:
                self._tidy(parent)
        elif len(node.children) == 1:
            (child,) = node.children.values()
            child.edge = node.edge + child.edge
            parent.adopt(child)


def _packed(tokens: Tokens) -> bytes:
    return np.asarray(tokens, np.int32).tobytes()


def _size(value: Value | None) -> int:
    return 0 if value is None else value.nbytes


def _is_whole(node: _Node[V], length: int) -> bool:
    """Whether a path that agrees for `length` tokens has the node's value to its end."""
    return node.value is not None and node.end <= length


def _agreement(edge: bytes, data: bytes, start: int) -> int:
    """How many tokens of `edge` agree with those of `data` from `start` on, not being all."""
    ours = np.frombuffer(edge, np.int32)
    theirs = np.frombuffer(data, np.int32, offset=start * _WIDTH)[: len(ours)]
    differs = ours[: len(theirs)] != theirs
    return int(differs.argmax()) if differs.any() else len(theirs)
