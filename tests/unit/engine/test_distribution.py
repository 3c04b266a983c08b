"""The arithmetic on distributions against numpy in double precision."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runner.engine.text import distribution
from headrace_runner.models import cpu

Array = npt.NDArray[np.float32]


@st.composite
def weights_of_rows(draw: st.DrawFn) -> Array:
    """Weights as the sampler has them: 1 for the likeliest; flat, peaked, with ties and zeros."""
    rows = draw(st.integers(1, 4))
    vocabulary = draw(st.sampled_from([1, 2, 63, 64, 65, 200, 1025, 2049, 5000]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = random.normal(0, draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 30.0])), (rows, vocabulary))
    if draw(st.booleans()):
        logits = np.round(logits)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    if draw(st.booleans()):
        weights *= random.random(weights.shape) < 0.5
        weights[:, random.integers(vocabulary)] = 1.0
    result: Array = weights.astype(np.float32)
    return result


def column(values: list[float]) -> mx.array:
    return mx.array([[value] for value in values], mx.float32)


def check_nucleus(row: Array, floor: float, share: float) -> None:
    """Whether the weights down to `floor` are the fewest that reach the share, but for rounding."""
    exact = row.astype(np.float64)
    rounding = 1e-5 * exact.sum()
    # Under 0 nothing is cut: what rounding makes of a share of almost all.
    assert floor in row or floor == 0
    assert exact[row >= floor].sum() >= share * exact.sum() - rounding
    assert floor == row.max() or exact[row > floor].sum() < share * exact.sum() + rounding


@settings(deadline=None)
@given(weights_of_rows(), st.data())
def test_a_nucleus_is_the_fewest_that_reach_the_share(weights: Array, data: st.DataObject) -> None:
    some = st.one_of(st.floats(1e-6, 0.999999), st.sampled_from([0.0, 1e-30, 0.5, 0.9999999]))
    shares = [data.draw(some) for _ in weights]
    floors = distribution.top_p_floor(mx.array(weights), column(shares))
    for row, floor, share in zip(weights, np.array(floors)[:, 0], shares, strict=True):
        check_nucleus(row, floor, share)


def test_a_share_that_is_reached_exactly_needs_no_more() -> None:
    weights = mx.array([[0.25, 1.0, 0.0, 0.5, 0.25]])
    for share, floor in ((0.5, 1.0), (0.75, 0.5), (0.76, 0.25), (0.0, 1.0)):
        assert distribution.top_p_floor(weights, column([share])).item() == floor
        k, shares = column([4.0]), column([share])
        assert distribution.top_k_floor(weights, k, shares, 4).item() == floor


@settings(deadline=None)
@given(weights_of_rows(), st.data())
def test_each_row_has_its_own_top_k_and_a_nucleus_in_it(
    weights: Array, data: st.DataObject
) -> None:
    counts = [data.draw(st.integers(1, weights.shape[1])) for _ in weights]
    shares = [data.draw(st.sampled_from([2.0, 0.9, 0.4, 1e-6])) for _ in weights]
    k = column([float(count) for count in counts])
    floors = distribution.top_k_floor(mx.array(weights), k, column(shares), max(counts))
    for row, floor, count, share in zip(weights, np.array(floors), counts, shares, strict=True):
        likeliest = np.sort(row)[::-1][:count]
        if share > 1:
            assert floor[0] == likeliest[-1]
        else:
            check_nucleus(likeliest, floor[0], share)


@settings(deadline=None)
@given(weights_of_rows(), st.data())
def test_the_largest_come_with_their_ids(weights: Array, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, weights.shape[1]))
    values, ids = map(np.array, distribution.top(mx.array(weights), count))
    assert np.array_equal(values, -np.sort(-weights, axis=1)[:, :count])
    assert np.array_equal(np.take_along_axis(weights, ids, axis=1), values)
    assert all(len(set(row)) == count for row in ids.tolist())


@pytest.fixture(params=["MLX", "kernels"])
def _weighed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights made by one or the other."""
    if request.param == "kernels":
        pytest.importorskip("headrace_kernels", exc_type=ImportError)
    by_kernels = request.param == "kernels"
    monkeypatch.setattr(cpu, "weighs", lambda logits: by_kernels)


@pytest.mark.usefixtures("_weighed")
@pytest.mark.parametrize("vocabulary", [50, 1000, 49_152])
def test_a_row_has_the_same_bits_in_any_batch(vocabulary: int) -> None:
    logits = mx.array(np.random.default_rng(0).normal(0, 2, (9, vocabulary)), mx.float32)
    shares = column([0.1 * i + 0.1 for i in range(9)])
    k = column([float(3 * i + 1) for i in range(9)])

    def results(rows: slice, most: int) -> list[mx.array]:
        part = logits[rows]
        weights = distribution.weights(part, distribution.peak(part), distribution.LOG2_E)
        return [
            weights,
            distribution.total(weights),
            distribution.top_p_floor(weights, shares[rows]),
            distribution.top_k_floor(weights, k[rows], shares[rows], most),
        ]

    together = results(slice(None), 25)
    for i in range(9):
        # Alone, the largest k is the row's own.
        for value, alone in zip(together, results(slice(i, i + 1), 3 * i + 1), strict=True):
            assert mx.array_equal(value[i : i + 1], alone)


@pytest.mark.usefixtures("_weighed")
def test_weights_are_probabilities_but_for_their_sum() -> None:
    logits = np.random.default_rng(1).normal(0, 20, (5, 3000))
    logits[0, :2000] = -math.inf
    logits[1] *= 1e4
    temperatures = np.array([[1.0], [0.3], [7.0], [1e-30], [1.0]])
    given = mx.array(logits, mx.float32)
    scale = column((distribution.LOG2_E / temperatures[:, 0]).tolist())
    found = np.array(distribution.weights(given, distribution.peak(given), scale))
    rounded = np.array(given).astype(np.float64)
    exact = np.exp((rounded - rounded.max(axis=1, keepdims=True)) / temperatures)
    assert np.allclose(found, exact, rtol=2e-5, atol=1e-37)
    assert found.min() == distribution.LEAST_WEIGHT


def test_small_weights_are_not_lost_beside_a_large_one() -> None:
    weights = np.full((1, 2**20), 2.0**-26, np.float32)
    weights[0, 0] = 1.0
    whole = distribution.total(mx.array(weights)).item()
    assert whole == pytest.approx(1 + (2**20 - 1) * 2.0**-26, rel=1e-6)


def test_draws_follow_the_weights_across_blocks() -> None:
    # 50 blocks of very different weight, most ids not drawn at all.
    random = np.random.default_rng(2)
    weights = (random.random(3200) * (random.random(3200) < 0.02)).astype(np.float32)
    weights[:64] *= 20
    draws = 20_000
    keys = mx.array(random.integers(0, 2**32, (draws, 2), dtype=np.uint32))
    rows = mx.broadcast_to(mx.array(weights), (draws, 3200))
    found = np.bincount(np.array(distribution.draw(rows, keys)), minlength=3200)
    assert not found[weights == 0].any()
    wanted = draws * weights.astype(np.float64) / weights.sum()
    likely = wanted >= 10
    statistic = float((((found - wanted)[likely]) ** 2 / wanted[likely]).sum())
    cells = int(likely.sum())
    # Pearson's statistic has mean k and deviation sqrt(2k) for k cells.
    assert cells > 20
    assert statistic < cells + 5 * math.sqrt(2 * cells)
