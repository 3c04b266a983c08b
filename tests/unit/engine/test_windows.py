"""Keys and values in windows, against a dictionary of plain arrays."""

from __future__ import annotations

import gc
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace_runner.engine.text.windows import Prompt, Segment, Window
from tests.examples import examples

Floats = npt.NDArray[np.float32]

LAYERS, HEADS = 2, 3
KEY_SIZE, VALUE_SIZE = 4, 2
STEP = 256
"""Tokens by which a window grows at least."""

_random = np.random.default_rng(0)


def numbers(rows: int, tokens: int) -> list[tuple[Floats, Floats]]:
    """Keys and values of each layer, no two the same."""
    return [
        (
            _random.random((rows, HEADS, tokens, KEY_SIZE), np.float32) + 1,
            _random.random((rows, HEADS, tokens, VALUE_SIZE), np.float32) + 1,
        )
        for _ in range(LAYERS)
    ]


def segment_of(layers: list[tuple[Floats, Floats]]) -> Segment:
    return Segment(
        tuple(mx.array(keys) for keys, _ in layers), tuple(mx.array(values) for _, values in layers)
    )


def numbers_of(segment: Segment) -> list[tuple[Floats, Floats]]:
    return [
        (np.array(keys), np.array(values))
        for keys, values in zip(segment.keys, segment.values, strict=True)
    ]


def cut(layers: list[tuple[Floats, Floats]], start: int, end: int) -> list[tuple[Floats, Floats]]:
    return [(keys[:, :, start:end], values[:, :, start:end]) for keys, values in layers]


def appended(
    layers: list[tuple[Floats, Floats]], more: list[tuple[Floats, Floats]]
) -> list[tuple[Floats, Floats]]:
    return [
        (np.concatenate([keys, new_keys], 2), np.concatenate([values, new_values], 2))
        for (keys, values), (new_keys, new_values) in zip(layers, more, strict=True)
    ]


def same(found: list[tuple[Floats, Floats]], wanted: list[tuple[Floats, Floats]]) -> bool:
    return all(
        np.array_equal(keys, wanted_keys, equal_nan=True)
        and np.array_equal(values, wanted_values, equal_nan=True)
        for (keys, values), (wanted_keys, wanted_values) in zip(found, wanted, strict=True)
    )


def write(window: Window, more: list[tuple[Floats, Floats]]) -> list[tuple[Floats, Floats]]:
    """New tokens for every row; gives what attention sees."""
    tokens = more[0][0].shape[2]
    window.ready(tokens)
    seen = []
    for layer, (keys, values) in enumerate(more):
        all_keys, all_values = window.extend(layer, mx.array(keys), mx.array(values))
        seen.append((np.array(all_keys), np.array(all_values)))
    window.end += tokens
    return seen


def window_of(*lengths: int) -> Window:
    window = Window()
    for uid, length in enumerate(lengths):
        window.join(uid, segment_of(numbers(1, length)))
    return window


class AnyOrder(RuleBasedStateMachine):
    """Rows that join, get tokens, and leave, some of them with numbers that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window()
        self.rows: dict[int, list[tuple[Floats, Floats]]] = {}
        self.joined = 0

    @precondition(lambda self: len(self.rows) < 12)
    @rule(length=st.one_of(st.integers(0, 5), st.integers(0, 600)), broken=st.booleans())
    def join(self, length: int, broken: bool) -> None:
        layers = numbers(1, length)
        if broken:
            for keys, values in layers:
                keys[..., ::2, :] = np.nan
                values[..., ::2, :] = np.inf
        self.window.join(self.joined, segment_of(layers))
        self.rows[self.joined] = layers
        self.joined += 1

    @precondition(lambda self: self.rows)
    @rule(steps=st.sampled_from([1, 1, 3, 40]))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self._write(1)

    @precondition(lambda self: len(self.rows) == 1)
    @rule(tokens=st.integers(1, 40), kept=st.integers(1, 40))
    def draft(self, tokens: int, kept: int) -> None:
        self._write(tokens)
        back = tokens - min(tokens, kept)
        self.window.end -= back
        (uid,) = self.rows
        self.rows[uid] = cut(self.rows[uid], 0, self.window.length(uid))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.sampled_from(sorted(self.rows)), min_size=1))
        self.window.keep(set(self.rows) - gone)
        for uid in gone:
            del self.rows[uid]

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        uid = data.draw(st.sampled_from(sorted(self.rows)))
        length = self.window.length(uid)
        start = data.draw(st.integers(0, length))
        end = data.draw(st.integers(start, length))
        found = numbers_of(self.window.segment(uid, start, end))
        assert same(found, cut(self.rows[uid], start, end))

    @invariant()
    def every_row_is_what_was_written(self) -> None:
        window = self.window
        assert sorted(window.uids) == sorted(self.rows)
        assert len(window) == len(self.rows)
        for uid, layers in self.rows.items():
            length = window.length(uid)
            assert length == layers[0][0].shape[2]
            assert same(numbers_of(window.segment(uid, 0, length)), layers)

    def _write(self, tokens: int) -> None:
        more = numbers(len(self.rows), tokens)
        seen = write(self.window, more)
        longest = max(self.window.length(uid) for uid in self.rows)
        for row, uid in enumerate(self.window.uids):
            mine = [(keys[row : row + 1], values[row : row + 1]) for keys, values in more]
            self.rows[uid] = appended(self.rows[uid], mine)
            shown = [(keys[row : row + 1], values[row : row + 1]) for keys, values in seen]
            start = longest - self.window.length(uid)
            assert shown[0][0].shape[2] == longest
            assert same(cut(shown, start, longest), self.rows[uid])
            # What is masked is multiplied by 0, which makes nothing of a number that is none.
            assert all(np.isfinite(part).all() for pair in cut(shown, 0, start) for part in pair)


AnyOrder.TestCase.settings = settings(
    deadline=None,
    max_examples=examples(60),
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow],
)
TestAnyOrder = AnyOrder.TestCase


def test_rows_of_like_length_suit_each_other() -> None:
    window = window_of(300, 400)
    assert [window.suits(length) for length in (0, 115, 116, 631, 632)] == [
        False,
        False,
        True,
        True,
        False,
    ]
    assert Window().suits(10**6)


@pytest.mark.parametrize("tokens", [1, STEP, 3 * STEP])
def test_a_window_has_room_for_whatever_it_was_made_ready_for(tokens: int) -> None:
    window = window_of(250)
    before = numbers_of(window.segment(0, 0, 250))
    more = numbers(1, tokens)
    write(window, more)
    assert same(numbers_of(window.segment(0, 0, 250 + tokens)), appended(before, more))


def test_a_step_needs_new_arrays_only_now_and_then() -> None:
    window = window_of(10)
    sizes = [window.nbytes]
    for _ in range(2000):
        write(window, numbers(1, 1))
        sizes.append(window.nbytes)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) <= 2000 // STEP + 1


def test_a_window_gives_back_the_room_of_rows_that_have_left() -> None:
    window = window_of(*[500] * 16)
    before = window.nbytes
    window.keep({3, 7, 11, 14})
    assert window.nbytes <= before / 4
    assert sorted(window.uids) == [3, 7, 11, 14]
    window.keep(set())
    assert len(window) == 0
    window.join(99, segment_of(numbers(1, 20)))
    assert window.nbytes < before / 8
    assert (window.uids, window.length(99)) == ([99], 20)


def test_the_room_before_the_shortest_row_is_used_again() -> None:
    window = window_of(400)
    for uid in range(1, 60):
        window.join(uid, segment_of(numbers(1, 350)))
        window.keep({uid})
        for _ in range(20):
            write(window, numbers(1, 1))
    # Otherwise it would have grown by the steps of all rows that ever were.
    assert window.end < 1000


def test_a_row_of_no_tokens_begins_at_the_end() -> None:
    window = window_of(0)
    assert (window.length(0), window.begin) == (0, window.end)
    window.join(1, segment_of(numbers(1, 7)))
    more = numbers(2, 1)
    write(window, more)
    assert (window.length(0), window.length(1)) == (1, 8)
    first = [(keys[:1], values[:1]) for keys, values in more]
    assert same(numbers_of(window.segment(0, 0, 1)), first)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_stays_half_precision(dtype: mx.Dtype) -> None:
    keys, values = mx.ones((1, 1, 5, 4), dtype), mx.ones((1, 1, 5, 2), dtype)
    segment = Segment((keys,), (values,))
    window = Window()
    window.join(0, segment)
    window.join(1, segment)
    window.ready(1)
    seen = window.extend(0, mx.ones((2, 1, 1, 4), dtype), mx.ones((2, 1, 1, 2), dtype))
    window.end += 1
    window.keep({1})
    copied = window.segment(1, 0, 6)
    prompt = Prompt(9)
    prompt.fill([(segment, 3)])
    pieces = (segment.part(1, 3), copied, prompt.segment())
    arrays = [*seen, *(array for piece in pieces for array in (*piece.keys, *piece.values))]
    assert {array.dtype for array in arrays} == {dtype}


def test_a_segment_is_cut_anywhere() -> None:
    layers = numbers(1, 9)
    segment = segment_of(layers)
    assert len(segment) == 9
    assert segment.nbytes == 4 * LAYERS * HEADS * 9 * (KEY_SIZE + VALUE_SIZE)
    for at in range(10):
        before, after = segment.divide(at)
        assert (len(before), len(after)) == (at, 9 - at)
        assert same(numbers_of(before), cut(layers, 0, at))
        assert same(numbers_of(after), cut(layers, at, 9))
        assert before.nbytes + after.nbytes == segment.nbytes


def active_memory() -> int:
    gc.collect()
    return mx.get_active_memory()


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("take", [lambda s: s.part(0, 1), lambda s: s.divide(1)[0]])
def test_a_part_does_not_hold_on_to_the_whole(
    heads: int, take: Callable[[Segment], Segment]
) -> None:
    before = active_memory()
    whole = Segment((mx.ones((1, heads, 2**16, 8)),), (mx.ones((1, heads, 2**16, 8)),))
    mx.eval(whole.keys, whole.values)
    assert active_memory() - before >= whole.nbytes
    size = whole.nbytes
    part = take(whole)
    del whole
    assert len(part) == 1
    assert active_memory() - before < size / 10


def test_a_copy_of_a_row_does_not_hold_on_to_the_window() -> None:
    before = active_memory()
    window = Window()
    window.join(0, Segment((mx.ones((1, 2, 2**15, 8)),), (mx.ones((1, 2, 2**15, 8)),)))
    copied = window.segment(0, 0, 3)
    del window
    assert len(copied) == 3
    assert active_memory() - before < 2**20


@settings(deadline=None)
@given(st.integers(1, 40), st.data())
def test_a_prompt_begins_with_pieces_and_goes_on_with_chunks(
    room: int, data: st.DataObject
) -> None:
    layers = numbers(1, room)
    known = data.draw(st.integers(0, room))
    prompt = Prompt(room)
    pieces: list[tuple[Segment, int]] = []
    while (at := sum(taken for _, taken in pieces)) < known:
        taken = data.draw(st.integers(1, known - at))
        # Of a segment that belongs to another prompt too the end may be that one's.
        end = [np.full_like(a, np.nan)[:, :, :3] for pair in layers for a in pair]
        theirs = list(zip(end[::2], end[1::2], strict=True))
        pieces.append((segment_of(appended(cut(layers, at, at + taken), cut(theirs, 0, 3))), taken))
    if pieces:
        prompt.fill(pieces)
    assert prompt.length == known
    while prompt.length < room:
        start = prompt.length
        count = data.draw(st.integers(1, room - start))
        for layer, (keys, values) in enumerate(cut(layers, start, start + count)):
            seen = prompt.extend(layer, mx.array(keys), mx.array(values))
            wanted = cut(layers, 0, start + count)[layer]
            assert all(map(np.array_equal, map(np.array, seen), wanted))
        mx.eval(prompt.state())
        prompt.length += count
        assert same(numbers_of(prompt.segment()), cut(layers, 0, prompt.length))
    assert prompt.nbytes == segment_of(layers).nbytes
    assert len(prompt.segment()) == room


def test_a_segment_of_a_prompt_stays_as_it_is() -> None:
    prompt, first, second = Prompt(6), numbers(1, 4), numbers(1, 2)
    prompt.fill([(segment_of(first), 4)])
    early = prompt.segment()
    for layer, (keys, values) in enumerate(second):
        prompt.extend(layer, mx.array(keys), mx.array(values))
    prompt.length = 6
    assert same(numbers_of(early), first)
    assert same(numbers_of(prompt.segment()), appended(first, second))


def test_a_remembered_segment_is_not_changed_by_the_rows_that_begin_with_it() -> None:
    layers = numbers(1, 300)
    segment = segment_of(layers)
    window = Window()
    window.join(0, segment)
    window.join(1, segment)
    for _ in range(3):
        write(window, numbers(2, 1))
    prompt = Prompt(400)
    prompt.fill([(segment, 300)])
    for layer, (keys, values) in enumerate(numbers(1, 50)):
        prompt.extend(layer, mx.array(keys), mx.array(values))
    mx.eval(prompt.state())
    assert same(numbers_of(segment), layers)
