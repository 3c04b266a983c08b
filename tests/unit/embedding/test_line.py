"""Whatever waits: every row is computed once, batches are bounded, and turns are taken."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from headrace_runner.engine.embedding.line import Line, Row

lengths = st.lists(st.integers(1, 64), min_size=1, max_size=20)
requests = st.lists(lengths, min_size=1, max_size=6)
budgets = st.integers(1, 256)


def padded(batch: list[Row]) -> int:
    return len(batch) * max(row.length for row in batch)


@given(requests, budgets, st.integers(1, 4))
def test_every_row_is_taken_once_in_bounded_batches(
    waiting: list[list[int]], budget: int, most: int
) -> None:
    line = Line()
    for uid, rows in enumerate(waiting):
        line.add(uid, rows)
    taken: list[Row] = []
    while line:
        first = line.longest()
        assert first is not None
        batch = line.take(budget, most)
        assert first in batch
        longest = max(row.length for row in batch)
        assert longest == first.length
        assert padded(batch) <= max(budget, longest)
        assert len({row.uid for row in batch}) <= most
        # What is padded costs no more than a third on top, but for the shortest rows.
        assert all(row.length >= min(longest - 8, int(0.75 * longest)) for row in batch)
        taken += batch
    expected = [(uid, index, n) for uid, rows in enumerate(waiting) for index, n in enumerate(rows)]
    assert sorted((row.uid, row.index, row.length) for row in taken) == expected
    assert line.take(budget, most) == []


@given(requests, budgets)
def test_between_two_turns_of_a_request_everybody_who_waits_has_one(
    waiting: list[list[int]], budget: int
) -> None:
    line = Line()
    for uid, rows in enumerate(waiting):
        line.add(uid, rows)
    left = Counter({uid: len(rows) for uid, rows in enumerate(waiting)})
    turns: list[int] = []
    while line:
        first = line.longest()
        assert first is not None
        turns.append(first.uid)
        for row in line.take(budget, 8):
            left[row.uid] -= 1
        # Whoever still waits has had at most one turn less than anybody else.
        counts = Counter(turns)
        still = [uid for uid, rows in left.items() if rows]
        assert all(max(counts.values()) - counts[uid] <= 1 for uid in still)


@given(requests, budgets)
def test_what_is_put_back_is_taken_again_and_alone_is_alone(
    waiting: list[list[int]], budget: int
) -> None:
    line = Line()
    for uid, rows in enumerate(waiting):
        line.add(uid, rows)
    batch = line.take(budget, 8)
    line.put_back(batch, alone=True)
    apart = {row.uid for row in batch}
    taken = 0
    while line:
        found = line.take(budget, 8)
        taken += len(found)
        together = {row.uid for row in found}
        assert len(together) == 1 or not together & apart
    assert taken == sum(map(len, waiting))


def test_a_small_request_waits_for_one_batch_of_a_large_one() -> None:
    line = Line()
    line.add(1, [10] * 1000)
    line.add(2, [11])
    assert {row.uid for row in line.take(100, 8)} == {1}
    assert line.take(100, 8)[0].uid == 2


def test_what_was_dropped_is_not_taken() -> None:
    line = Line()
    line.add(1, [10, 12])
    line.add(2, [11])
    line.drop(1)
    line.drop(3)
    assert line.take(1000, 8) == [Row(11, 2, 0)]
    assert not line
