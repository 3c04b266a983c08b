"""Log-probabilities against numpy in double precision."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from headrace_runner.engine.text.logprobs import Logprobs, logprobs

VOCABULARY = 3003
ROWS = 6

Array = npt.NDArray[np.float64]


def some_logits() -> Array:
    values = np.random.default_rng(3).normal(0, 4, (ROWS, VOCABULARY))
    # What float32 holds, so that both sides begin with the same numbers.
    return values.astype(np.float32).astype(np.float64)


def found(logits: Array, tokens: list[int], asking: list[int], counts: list[int]) -> list[Logprobs]:
    pending = logprobs(mx.array(logits, mx.float32), mx.array(tokens, mx.uint32), asking, counts)
    return pending.read()


def exact(logits: Array) -> Array:
    peak = logits.max(axis=1, keepdims=True)
    result: Array = logits - peak - np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
    return result


@pytest.mark.parametrize("asking", [[0], [4, 1], list(range(ROWS))])
@pytest.mark.parametrize("top", [0, 1, 5, 20, 200])
def test_they_are_those_of_the_whole_distribution(asking: list[int], top: int) -> None:
    logits, tokens = some_logits(), [0, 17, 64, 1000, VOCABULARY - 1, 5]
    wanted = exact(logits)
    counts = [top] * len(asking)
    for row, one in zip(asking, found(logits, tokens, asking, counts), strict=True):
        assert one.token == pytest.approx(wanted[row, tokens[row]], abs=1e-5)
        likeliest = np.argsort(-logits[row])[:top].tolist()
        assert [token for token, _ in one.top] == likeliest
        assert [value for _, value in one.top] == pytest.approx(wanted[row, likeliest], abs=1e-5)


def test_each_row_gets_as_many_as_it_asks_for() -> None:
    counts = [0, 3, 20, 1]
    answers = found(some_logits(), [0] * ROWS, [0, 2, 3, 5], counts)
    assert [len(one.top) for one in answers] == counts


def test_a_row_gets_the_same_whatever_others_ask_for() -> None:
    # Half precision has many equal logits, at the border of a top 5 too.
    logits = np.round(some_logits())
    alone = found(logits[2:3], [9], [0], [5])
    beside = found(logits, [9] * ROWS, [2, 3], [5, 20])
    nothing_beside = found(logits, [9] * ROWS, [0, 2], [0, 5])
    assert alone[0] == beside[0] == nothing_beside[1]
    ids = [token for token, value in alone[0].top if value == alone[0].top[-1][1]]
    assert ids == sorted(ids)


def test_the_vocabulary_bounds_the_alternatives() -> None:
    logits = np.array([[0.0, 2.0, 1.0]])
    (one,) = found(logits, [1], [0], [20])
    assert [token for token, _ in one.top] == [1, 2, 0]
    assert sum(math.exp(value) for _, value in one.top) == pytest.approx(1)


def test_tokens_that_are_ruled_out_are_no_alternatives() -> None:
    logits = np.full((1, VOCABULARY), -math.inf)
    logits[0, [7, 3000]] = 1.0, 3.0
    (one,) = found(logits, [5], [0], [20])
    assert one.token == -math.inf
    assert [token for token, _ in one.top] == [3000, 7]


def test_half_precision_is_added_up_in_full() -> None:
    logits = mx.zeros((1, VOCABULARY), mx.float16)
    (one,) = logprobs(logits, mx.array([4], mx.uint32), [0], [1]).read()
    assert one.token == pytest.approx(-math.log(VOCABULARY), abs=1e-6)


def test_the_arrays_are_all_that_a_read_waits_for() -> None:
    logits, tokens = mx.array(some_logits(), mx.float32), mx.zeros((ROWS,), mx.uint32)
    pending = logprobs(logits, tokens, [0, 1], [0, 2])
    mx.eval(pending.arrays)
    mx.reset_peak_memory()
    before = mx.get_peak_memory()
    assert len(pending.read()) == 2
    assert mx.get_peak_memory() == before
