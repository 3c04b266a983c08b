"""The engine's work on embeddings, step by step: order, faults, lack of memory, those who leave."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import InsufficientMemory, InternalError
from headrace_runner.engine.embedding.request import EmbeddingRequest, Event, Finished, Started
from headrace_runner.engine.embedding.worker import EmbeddingWorker, Limits
from headrace_runner.engine.stream import Failed
from headrace_runner.models.encoders.encoder import Vectors

BAD = 66
"""A token that no batch gets over."""
PLENTY = 1 << 40


class Sums:
    """Stands for an encoder: a row's vector is its length and the sum of its tokens."""

    weights_bytes = 10

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.room = PLENTY
        """Padded tokens for which there is memory."""

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        self.batches.append([list(row) for row in rows])
        if len(rows) * max(map(len, rows)) > self.room:
            raise RuntimeError("[malloc_or_wait] Unable to allocate 1 bytes.")
        if any(BAD in row for row in rows):
            raise ValueError("a row is bad")
        return np.array([[len(row), sum(row)] for row in rows], dtype=np.float32)


class Desk:
    """The worker's surroundings."""

    def __init__(self, batch_tokens: int = 32, max_requests: int = 8) -> None:
        self.events: dict[int, list[Event]] = defaultdict(list)
        self.model = Sums()
        self.free = PLENTY
        limits = Limits(max_requests, lambda n, m: 10 * n * m, lambda: self.free, batch_tokens)
        self.worker = EmbeddingWorker(self.model, limits, self._deliver)
        self.model.batches.clear()

    def _deliver(self, batch: list[tuple[int, list[Event]]]) -> None:
        for uid, events in batch:
            seen = self.events[uid]
            assert not (seen and isinstance(seen[-1], Finished | Failed))
            seen += events

    def take(self, uid: int, *inputs: Sequence[int]) -> None:
        self.worker.take(uid, EmbeddingRequest(str(uid), tuple(map(tuple, inputs))))

    def turn(self) -> None:
        self.worker.admit()
        self.worker.step()

    def run(self) -> None:
        for _ in range(1000):
            if not self.worker.busy:
                return
            self.turn()
        raise AssertionError("it does not come to an end")

    def vectors(self, uid: int) -> list[tuple[int, int]]:
        *_, last = self.events[uid]
        assert isinstance(last, Finished)
        return [(int(length), int(total)) for length, total in last.vectors]

    def error(self, uid: int) -> Exception:
        *_, last = self.events[uid]
        assert isinstance(last, Failed)
        return last.error


tokens = st.lists(st.integers(0, 50), min_size=1, max_size=12)
asked = st.lists(st.lists(tokens, min_size=1, max_size=8), min_size=1, max_size=5)


@given(asked, st.integers(1, 64))
def test_each_input_gets_its_vector_in_its_place(inputs: list[list[list[int]]], size: int) -> None:
    desk = Desk(size)
    for uid, rows in enumerate(inputs):
        desk.take(uid, *rows)
    desk.run()
    for uid, rows in enumerate(inputs):
        assert [type(event) for event in desk.events[uid]] == [Started, Finished]
        assert desk.vectors(uid) == [(len(row), sum(row)) for row in rows]
    stats = desk.worker.stats
    assert stats.prompts == sum(map(len, inputs))
    assert stats.prompt_tokens == sum(len(row) for rows in inputs for row in rows)


def test_a_fault_ends_its_own_request_alone() -> None:
    desk = Desk()
    desk.take(1, [1, 2], [3, 4])
    desk.take(2, [5, BAD])
    desk.take(3, [7, 8])
    desk.run()
    assert desk.vectors(1) == [(2, 3), (2, 7)]
    assert isinstance(desk.error(2), InternalError)
    assert desk.vectors(3) == [(2, 15)]


def test_when_memory_runs_out_batches_are_smaller() -> None:
    desk = Desk()
    desk.model.room = 4
    desk.take(1, *([n, n] for n in range(10)))
    desk.run()
    assert desk.vectors(1) == [(2, 2 * n) for n in range(10)]
    assert max(len(batch) for batch in desk.model.batches[-4:]) <= 4


def test_what_never_fits_is_refused_and_named() -> None:
    desk = Desk()
    desk.model.room = 4
    desk.take(1, [1] * 5)
    desk.take(2, [2] * 4)
    desk.run()
    error = desk.error(1)
    assert isinstance(error, InsufficientMemory)
    assert "an input of 5 tokens" in error.message
    assert desk.vectors(2) == [(4, 8)]


def test_a_batch_takes_no_more_than_is_free() -> None:
    desk = Desk()
    desk.free = 45  # Four tokens of ten bytes each.
    desk.take(1, [1, 1], [2, 2], [3, 3])
    desk.take(2, [1] * 5)
    desk.run()
    assert desk.vectors(1) == [(2, 2), (2, 4), (2, 6)]
    assert [len(batch) for batch in desk.model.batches] == [2, 1]
    error = desk.error(2)
    assert isinstance(error, InsufficientMemory)
    assert error.metadata["needs"] == "50"


def test_numbers_that_are_none_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    monkeypatch.setattr(desk.model, "embed", lambda rows: np.full((len(rows), 2), np.nan))
    desk.take(1, [1])
    desk.run()
    assert isinstance(desk.error(1), InternalError)


def test_whoever_leaves_is_not_computed_for() -> None:
    desk = Desk(batch_tokens=4)
    desk.take(1, *[[1, 1]] * 50)
    desk.take(2, [2, 2])
    desk.turn()
    desk.worker.admit()
    desk.worker.drop({1})
    desk.run()
    assert desk.vectors(2) == [(2, 4)]
    assert len(desk.model.batches) == 2
    assert [type(event) for event in desk.events[1]] == [Started]
    assert not desk.worker.busy


def test_a_small_request_is_not_held_up_by_a_large_one() -> None:
    desk = Desk(batch_tokens=4)
    desk.take(1, *[[1, 1]] * 50)
    desk.turn()
    desk.take(2, [2, 2])
    desk.turn()
    desk.turn()
    assert desk.vectors(2) == [(2, 4)]


def test_no_more_requests_share_a_batch_than_may() -> None:
    desk = Desk(max_requests=2)
    for uid in range(5):
        desk.take(uid, [uid, uid])
    desk.run()
    assert [len(batch) for batch in desk.model.batches] == [2, 2, 1]
