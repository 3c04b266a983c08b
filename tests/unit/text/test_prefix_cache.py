"""The tree agrees with a model that knows only the prefixes it holds and when each was used."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from headrace_runner.engine.text.prefix_cache import Counters, PrefixCache, Tokens, _Node
from tests.examples import examples

Prefix: TypeAlias = tuple[int, ...]

# Two tokens make shared beginnings, and so cuts, the rule; these two share bytes, too.
PREFIX = st.lists(st.sampled_from((1, 256)), max_size=9).map(tuple)
BUDGET = st.integers(0, 120)
LIMIT = st.none() | st.integers(0, 9)


@dataclass(eq=False)
class Run:
    """A value that says what it is the value of. Its size is not simply that of its parts."""

    tokens: Prefix

    @property
    def nbytes(self) -> int:
        return _cost(len(self.tokens))


class Error(Exception):
    """What a test's own function raises."""


def _cost(count: int) -> int:
    return 3 * count + 2


def _divide(run: Run, at: int) -> tuple[Run, Run]:
    assert 0 < at < len(run.tokens)
    return Run(run.tokens[:at]), Run(run.tokens[at:])


def _array(tokens: Prefix) -> Tokens:
    return np.array(tokens, np.int32)


def _shared(a: Prefix, b: Prefix) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))


class Maker:
    """Makes values and remembers for which spans."""

    def __init__(self, tokens: Prefix, *, whole: bool = False) -> None:
        self._tokens, self._whole = tokens, whole
        self.spans: list[tuple[int, int]] = []

    def __call__(self, start: int, end: int) -> Run:
        self.spans.append((start, end))
        return Run(self._tokens[0 if self._whole else start : end])


def _segments(budget: int = 10_000) -> PrefixCache[Run]:
    return PrefixCache(budget, _divide)


def _checkpoints(budget: int = 10_000) -> PrefixCache[Run]:
    return PrefixCache(budget)


def _insert(cache: PrefixCache[Run], tokens: Prefix) -> list[tuple[int, int]]:
    """Gives the spans that values were made for."""
    maker = Maker(tokens, whole=cache._divide is None)
    assert cache.insert(_array(tokens), maker)
    return maker.spans


def _reusable(cache: PrefixCache[Run], tokens: Prefix, limit: int | None = None) -> int:
    return cache.match(_array(tokens), limit).reusable


def _nodes(cache: PrefixCache[Run]) -> dict[Prefix, _Node[Run]]:
    """All nodes but the root, by their prefixes, parents first."""
    found: dict[Prefix, _Node[Run]] = {}
    waiting: list[tuple[Prefix, _Node[Run]]] = [((), root) for root in cache._roots.values()]
    while waiting:
        prefix, node = waiting.pop()
        for first, child in node.children.items():
            edge = tuple(np.frombuffer(child.edge, np.int32).tolist())
            assert child.parent is node
            assert edge[:1] == tuple(np.frombuffer(first, np.int32))
            assert (child.start, child.end) == (len(prefix), len(prefix + edge))
            found[prefix + edge] = child
            waiting.append((prefix + edge, child))
    return found


class Comparison(RuleBasedStateMachine):
    """Does the same with the cache and with a dictionary of when each value was last used.

    The dictionary's keys are whole prefixes, one for each value, and its order is that of use.
    """

    def __init__(self) -> None:
        super().__init__()
        self.used: dict[Prefix, None] = {}
        self.counters = Counters()

    @initialize(budget=BUDGET, segments=st.booleans())
    def start(self, budget: int, *, segments: bool) -> None:
        self.cache = _segments(budget) if segments else _checkpoints(budget)
        self.segments = segments

    @rule(tokens=PREFIX, limit=LIMIT)
    def match(self, tokens: Prefix, limit: int | None) -> None:
        known = tokens[: self.known(tokens[:limit])]
        pieces = self.use(known)
        found = self.cache.match(_array(tokens), limit)
        assert found.length == len(known)
        assert [(p.start, p.end, p.value.tokens) for p in found.pieces] == [
            (self.above(prefix), len(prefix), self.value(prefix)) for prefix in pieces
        ]
        assert [p.start + p.taken for p in found.pieces] == [
            min(len(prefix), len(known)) for prefix in pieces
        ]
        self.counters.lookups += 1
        self.counters.hits += bool(pieces)
        self.counters.asked_tokens += len(tokens)
        self.counters.reused_tokens += found.reusable

    @rule(tokens=PREFIX)
    def insert(self, tokens: Prefix) -> None:
        maker = Maker(tokens, whole=not self.segments)
        spans, kept = self.expect_insert(tokens)
        assert self.cache.insert(_array(tokens), maker) == kept
        assert maker.spans == spans
        self.expect_shrink(self.cache.budget)
        if kept:
            assert self.known(tokens) == len(tokens), "what was just used must survive"

    @rule(tokens=PREFIX)
    def fail(self, tokens: Prefix) -> None:
        def make(start: int, end: int) -> Run:
            raise Error

        try:
            self.cache.insert(_array(tokens), make)
        except Error:
            return  # the invariants see that nothing has changed
        spans, _ = self.expect_insert(tokens)
        assert spans == []

    @rule(to_bytes=BUDGET)
    def shrink(self, to_bytes: int) -> None:
        before = self.nbytes()
        self.expect_shrink(to_bytes)
        assert self.cache.shrink(to_bytes) == before - self.nbytes()

    @rule()
    def clear(self) -> None:
        self.used.clear()
        self.cache.clear()

    @invariant()
    def the_same_is_held(self) -> None:
        nodes = _nodes(self.cache)
        held = {prefix: node for prefix, node in nodes.items() if node.value is not None}
        assert held.keys() == self.used.keys()
        assert list(self.cache._order) == [held[prefix] for prefix in self.used]
        for prefix, node in held.items():
            assert node.value
            assert node.value.tokens == self.value(prefix)
        for node in nodes.values():
            assert node.value is not None or len(node.children) > 1, "a needless junction"
        assert all(root.children for root in self.cache._roots.values())

    @invariant()
    def a_segment_was_used_after_those_that_need_it(self) -> None:
        order = {node: place for place, node in enumerate(self.cache._order)}
        for node in order if self.segments else ():
            assert node.parent
            assert node.parent.parent is None or order[node.parent] > order[node]

    @invariant()
    def the_books_are_right(self) -> None:
        assert self.cache.nbytes == self.nbytes() <= self.cache.budget
        prefixes = {prefix[:end] for prefix in self.used for end in range(1, len(prefix) + 1)}
        assert self.cache.tokens == len(prefixes)
        assert self.cache.counters == self.counters

    def known(self, tokens: Prefix) -> int:
        return max((_shared(tokens, prefix) for prefix in self.used), default=0)

    def above(self, prefix: Prefix) -> int:
        """Where the edge that ends with `prefix` begins: where others part from it, or end."""
        shared = (_shared(prefix, other) for other in self.used)
        return max((count for count in shared if count < len(prefix)), default=0)

    def value(self, prefix: Prefix) -> Prefix:
        return prefix[self.above(prefix) :] if self.segments else prefix

    def nbytes(self) -> int:
        return sum(_cost(len(self.value(prefix))) for prefix in self.used)

    def use(self, known: Prefix) -> list[Prefix]:
        """Marks and gives what can be reused, in order."""
        if self.segments:
            found = sorted((p for p in self.used if _shared(p, known) > self.above(p)), key=len)
        else:
            found = sorted((p for p in self.used if p == known[: len(p)]), key=len)[-1:]
        for prefix in reversed(found):
            del self.used[prefix]
            self.used[prefix] = None
        return found

    def expect_insert(self, tokens: Prefix) -> tuple[list[tuple[int, int]], bool]:
        """Gives the spans that values are made for, and whether the tokens are kept."""
        spans = []
        is_known = self.known(tokens) == len(tokens) if self.segments else tokens in self.used
        if tokens and not is_known:
            if not self.cache.budget:
                return [], False  # There is no use in making what cannot be kept.
            before, start = dict(self.used), self.above(tokens)
            spans.append((start, len(tokens)))
            if self.segments and start:
                self.used.setdefault(tokens[:start])
            self.used[tokens] = None
            needs = [tokens]
            if self.segments:
                needs = [prefix for prefix in self.used if prefix == tokens[: len(prefix)]]
            if sum(_cost(len(self.value(prefix))) for prefix in needs) > self.cache.budget:
                self.used = before
                return spans, False
        self.use(tokens)
        return spans, True

    def expect_shrink(self, to_bytes: int) -> None:
        while self.nbytes() > to_bytes:
            del self.used[self.victim()]
            self.counters.evictions += 1

    def victim(self) -> Prefix:
        """The least recently used; of segments, of those that no other needs."""
        return next(
            prefix
            for prefix in self.used
            if not self.segments
            or all(other == prefix or other[: len(prefix)] != prefix for other in self.used)
        )


TestComparison = Comparison.TestCase
TestComparison.settings = settings(
    max_examples=examples(250), stateful_step_count=40, deadline=None
)


def test_a_hit_is_exact_to_the_token() -> None:
    cache = _segments()
    _insert(cache, (1, 2, 3, 4, 5))
    found = cache.match(_array((1, 2, 3, 9)))
    assert (found.length, found.reusable) == (3, 3)
    (piece,) = found.pieces
    assert (piece.start, piece.end, piece.taken) == (0, 5, 3)
    assert cache.match(_array((9,))).pieces == ()
    assert cache.match(_array(())).pieces == ()


def test_only_what_is_new_is_made() -> None:
    cache = _segments()
    assert _insert(cache, (1, 2, 3, 4)) == [(0, 4)]
    assert _insert(cache, (1, 2, 3, 4, 5, 6)) == [(4, 6)]
    assert _insert(cache, (1, 2, 7)) == [(2, 3)]
    assert _insert(cache, (1, 2, 3)) == []
    assert _insert(cache, ()) == []


def test_b7_a_limit_leaves_something_to_compute() -> None:
    segments, checkpoints = _segments(), _checkpoints()
    for cache in segments, checkpoints:
        _insert(cache, (1, 2))
        _insert(cache, (1, 2, 3, 4))
    assert _reusable(segments, (1, 2, 3, 4), limit=3) == 3
    assert _reusable(checkpoints, (1, 2, 3, 4), limit=3) == 2
    assert _reusable(checkpoints, (1, 2), limit=0) == 0


def test_a_checkpoint_holds_for_its_last_token_alone() -> None:
    cache = _checkpoints()
    _insert(cache, (1, 2, 3, 4))
    found = cache.match(_array((1, 2, 3, 9)))
    assert (found.length, found.reusable) == (3, 0)
    assert cache.match(_array((1, 2, 3, 4, 5))).reusable == 4


def test_a_checkpoint_where_prompts_part() -> None:
    cache = _checkpoints()
    _insert(cache, (1, 2, 3))
    _insert(cache, (1, 2, 4))
    assert _reusable(cache, (1, 2, 9)) == 0
    assert _insert(cache, (1, 2)) == [(0, 2)]
    assert _reusable(cache, (1, 2, 9)) == 2


def test_spaces_know_nothing_of_each_other_and_share_the_budget() -> None:
    cache = _segments(budget=2 * _cost(4))
    tokens = _array((1, 2, 3, 4))
    for space in (None, "a"):
        assert not cache.match(tokens, space=space).length
        assert cache.insert(tokens, Maker((1, 2, 3, 4)), space)
        assert cache.match(tokens, space=space).reusable == 4
    cache.match(tokens)
    assert cache.insert(tokens, Maker((1, 2, 3, 4)), "b")  # For which the least recently used goes.
    found = [cache.match(tokens, space=space).reusable for space in (None, "a", "b")]
    assert found == [4, 0, 4]
    cache.clear()
    assert not cache.match(tokens, space="b").length


def test_what_was_used_last_survives() -> None:
    cache = _segments(budget=3 * _cost(4))
    for first in range(3):
        _insert(cache, (first, 1, 1, 1))
    assert _reusable(cache, (0, 1, 9)) == 2
    _insert(cache, (3, 1, 1, 1))
    assert [_reusable(cache, (first, 1, 1, 1)) for first in range(4)] == [4, 0, 4, 4]
    assert cache.counters == Counters(5, 4, 19, 14, evictions=1)


def test_of_one_path_the_last_segment_goes_first() -> None:
    cache = _segments()
    for end in range(1, 6):
        _insert(cache, (1, 2, 3, 4, 5)[:end])
    cache.shrink(cache.nbytes - 1)
    assert _reusable(cache, (1, 2, 3, 4, 5)) == 4


def test_of_one_conversation_the_latest_checkpoints_stay() -> None:
    cache = _checkpoints(budget=_cost(4) + _cost(5))
    for end in range(1, 6):
        _insert(cache, (1, 2, 3, 4, 5)[:end])
    assert [_reusable(cache, (1, 2, 3, 4, 5)[:end]) for end in range(1, 6)] == [0, 0, 0, 4, 5]


@pytest.mark.parametrize("make_cache", [_segments, _checkpoints])
def test_what_is_too_large_evicts_nobody(make_cache: Callable[[int], PrefixCache[Run]]) -> None:
    cache = make_cache(20)
    _insert(cache, (1, 2))
    assert not cache.insert(_array((3,) * 7), Maker((3,) * 7, whole=True))
    assert (_reusable(cache, (1, 2)), _reusable(cache, (3,)), cache.counters.evictions) == (2, 0, 0)


def test_a_segment_that_fits_only_without_its_path_is_not_kept() -> None:
    cache = _segments(budget=_cost(2) + _cost(3))
    _insert(cache, (1, 2))
    _insert(cache, (3,))
    assert not cache.insert(_array((1, 2, 3, 4, 5, 6)), Maker((1, 2, 3, 4, 5, 6)))
    assert (_reusable(cache, (1, 2, 3)), _reusable(cache, (3,))) == (2, 1)


def test_an_error_of_divide_changes_nothing() -> None:
    def divide(run: Run, at: int) -> tuple[Run, Run]:
        raise Error

    cache = PrefixCache(100, divide)
    _insert(cache, (1, 2, 3))
    with pytest.raises(Error):
        _insert(cache, (1, 2, 4))
    assert (_reusable(cache, (1, 2, 3)), _reusable(cache, (1, 2, 4))) == (3, 2)
    assert (cache.nbytes, cache.tokens) == (_cost(3), 3)


@pytest.mark.parametrize("drop", ["shrink", "clear"])
def test_what_is_evicted_lives_with_its_users_and_no_longer(drop: str) -> None:
    cache = _segments()
    _insert(cache, (1, 2, 3))
    _insert(cache, (1, 2, 4, 5))
    found = cache.match(_array((1, 2, 3)))
    used = [weakref.ref(piece.value) for piece in found.pieces]
    unused = weakref.ref(cache.match(_array((1, 2, 4))).pieces[-1].value)
    gc.disable()
    try:
        cache.clear() if drop == "clear" else cache.shrink(0)
        assert (cache.nbytes, cache.tokens) == (0, 0)
        assert unused() is None, "memory waits for the garbage collector"
        assert all(ref() for ref in used)
        del found
        assert [ref() for ref in used] == [None, None]
    finally:
        gc.enable()


def test_tokens_of_other_arrays() -> None:
    cache = _segments()
    _insert(cache, (1, 2, 3))
    assert cache.match(np.array([1, 2, 3, 4], np.int64)).length == 3
    assert cache.match(_array((1, 0, 2, 0, 3, 0))[::2]).length == 3


def test_the_cache_does_not_keep_the_prompt() -> None:
    cache, prompt = _segments(), _array((1, 2, 3))
    assert cache.insert(prompt, Maker((1, 2, 3)))
    prompt[:] = 9
    assert _reusable(cache, (1, 2, 3)) == 3


@pytest.mark.parametrize("cache", [_segments(0), _checkpoints(0)])
def test_nothing_is_made_for_a_cache_without_a_budget(cache: PrefixCache[Run]) -> None:
    maker = Maker((1, 2))
    assert not cache.insert(_array((1, 2)), maker)
    assert maker.spans == []


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        _segments(-1)


@pytest.mark.parametrize("cache", [_segments(10), _checkpoints(10)])
def test_a_space_that_holds_nothing_takes_nothing(cache: PrefixCache[Run]) -> None:
    def fail(start: int, end: int) -> Run:
        raise Error

    cache.match(_array((1, 2)), space="looked up")
    with pytest.raises(Error):
        cache.insert(_array((1, 2)), fail, "failed")
    assert not cache.insert(_array((1,) * 9), Maker((1,) * 9), "too large")
    assert not cache._roots
    for number in range(5):  # Each goes for the next one.
        assert cache.insert(_array((1, 2)), Maker((1, 2)), f"a{number}")
        assert list(cache._roots) == [f"a{number}"]
    cache.shrink(0)
    assert not cache._roots
