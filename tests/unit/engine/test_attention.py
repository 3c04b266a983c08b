"""Attention both ways against plain loops in double precision."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runner.engine.text.attention import attend

Doubles = npt.NDArray[np.float64]

BLOCK = 64
"""Queries that are scored together on a CPU at most; of many keys it is fewer."""

both_ways = pytest.mark.parametrize("by_products", [False, True], ids=["fast", "by products"])


def expected(
    queries: Doubles, keys: Doubles, values: Doubles, scale: float, starts: list[int]
) -> Doubles:
    """One query at a time, which sees the keys from its row's start to its own."""
    rows, query_heads, tokens, _ = queries.shape
    heads, length = keys.shape[1:3]
    found = np.zeros((rows, query_heads, tokens, values.shape[3]))
    for row, query_head, token in np.ndindex(rows, query_heads, tokens):
        head = query_head // (query_heads // heads)
        seen = slice(starts[row], length - tokens + token + 1)
        scores = keys[row, head, seen] @ queries[row, query_head, token] * scale
        weights = np.exp(scores - scores.max())
        found[row, query_head, token] = weights @ values[row, head, seen] / weights.sum()
    return found


def doubles(array: mx.array) -> Doubles:
    return np.array(array.astype(mx.float32)).astype(np.float64)


def padding_for(starts: list[int], length: int) -> mx.array:
    hidden = np.arange(length)[None] < np.array(starts)[:, None]
    return mx.array(np.where(hidden, -math.inf, 0.0)[:, None, None].astype(np.float32))


def inputs(
    shape: tuple[int, int, int, int, int], size: int = 16, spread: float = 1.0
) -> list[mx.array]:
    """Queries, keys and values for (rows, heads, query heads of each, tokens, length)."""
    rows, heads, group, tokens, length = shape
    random = np.random.default_rng(list(shape))
    shapes = [(heads * group, tokens), (heads, length), (heads, length)]
    arrays = [random.normal(0, 1, (rows, *middle, size)) for middle in shapes]
    arrays[0] *= spread
    return [mx.array(array, mx.float32) for array in arrays]


@both_ways
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 1),
        (1, 3, 1, 1, 40),
        (5, 2, 3, 1, 33),
        (1, 2, 3, 7, 7),
        (1, 2, 3, 7, 50),
        (1, 1, 2, BLOCK, BLOCK),
        (1, 2, 2, BLOCK + 1, BLOCK + 1),
        (1, 2, 2, BLOCK + 1, BLOCK + 40),
        (1, 1, 2, 2 * BLOCK, 2 * BLOCK + 3),
        (1, 1, 2, 4 * BLOCK + 17, 5 * BLOCK),
        (1, 4, 4, 20, 3000),
    ],
    ids=str,
)
def test_each_query_sees_what_was_before_it(
    shape: tuple[int, int, int, int, int], by_products: bool
) -> None:
    queries, keys, values = inputs(shape)
    found = attend(queries, keys, values, 0.3, by_products=by_products)
    wanted = expected(doubles(queries), doubles(keys), doubles(values), 0.3, [0] * shape[0])
    assert found.shape == queries.shape
    assert np.abs(doubles(found) - wanted).max() < 2e-5


@settings(deadline=None)
@given(
    by_products=st.booleans(),
    shape=st.tuples(*[st.integers(1, most) for most in (4, 3, 3, 4)]),
    data=st.data(),
)
def test_a_row_does_not_see_what_is_before_its_start(
    by_products: bool, shape: tuple[int, int, int, int], data: st.DataObject
) -> None:
    rows, heads, group, tokens = shape
    length = data.draw(st.integers(tokens, 60))
    starts = [data.draw(st.integers(0, length - tokens)) for _ in range(rows)]
    queries, keys, values = inputs((rows, heads, group, tokens, length))
    wanted = expected(doubles(queries), doubles(keys), doubles(values), 0.25, starts)
    padding = padding_for(starts, length)
    found = attend(queries, keys, values, 0.25, padding, by_products=by_products)
    assert np.abs(doubles(found) - wanted).max() < 2e-5


@both_ways
def test_more_than_a_block_of_a_padded_row(by_products: bool) -> None:
    queries, keys, values = inputs((2, 1, 2, BLOCK + 30, BLOCK + 90))
    wanted = expected(doubles(queries), doubles(keys), doubles(values), 0.25, [60, 7])
    padding = padding_for([60, 7], BLOCK + 90)
    found = attend(queries, keys, values, 0.25, padding, by_products=by_products)
    assert np.abs(doubles(found) - wanted).max() < 2e-5


@both_ways
@pytest.mark.parametrize("tokens", [1, 5])
def test_what_is_written_before_a_start_does_not_matter(by_products: bool, tokens: int) -> None:
    queries, keys, values = inputs((2, 2, 2, tokens, 20))
    starts = [10, 0]
    padding = padding_for(starts, 20)
    before = attend(queries, keys, values, 0.25, padding, by_products=by_products)
    keys[:1, :, :10] = 1e4
    values[:1, :, :10] = -1e30
    after = attend(queries, keys, values, 0.25, padding, by_products=by_products)
    assert mx.array_equal(before, after)


@both_ways
@pytest.mark.parametrize("tokens", [1, 6])
def test_scores_of_any_size(by_products: bool, tokens: int) -> None:
    # The likeliest key takes all, and nothing overflows.
    queries, keys, values = inputs((1, 2, 2, tokens, 30), spread=1e6)
    found = attend(queries, keys, values, 0.25, by_products=by_products)
    wanted = expected(doubles(queries), doubles(keys), doubles(values), 0.25, [0])
    assert np.abs(doubles(found) - wanted).max() < 1e-4


@both_ways
def test_values_may_have_dimensions_of_their_own(by_products: bool) -> None:
    queries, keys, values = inputs((2, 2, 2, 3, 9))
    values = values[..., :6]
    found = attend(queries, keys, values, 0.25, by_products=by_products)
    wanted = expected(doubles(queries), doubles(keys), doubles(values), 0.25, [0, 0])
    assert np.abs(doubles(found) - wanted).max() < 2e-5


@both_ways
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(mx.float16, 3e-3), (mx.bfloat16, 2e-2)], ids=str)
def test_half_precision_is_no_worse_than_its_own_rounding(
    dtype: mx.Dtype, bound: float, padded: bool, by_products: bool
) -> None:
    queries, keys, values = (array.astype(dtype) for array in inputs((2, 2, 2, 1, 200), 64))
    padding = padding_for([50, 0], 200) if padded else None
    starts = [50, 0] if padded else [0, 0]
    found = attend(queries, keys, values, 0.125, padding, by_products=by_products)
    wanted = expected(doubles(queries), doubles(keys), doubles(values), 0.125, starts)
    assert found.dtype == dtype
    assert np.abs(doubles(found) - wanted).max() < bound * np.abs(wanted).max()


@both_ways
def test_a_row_that_is_broken_breaks_no_other(by_products: bool) -> None:
    queries, keys, values = inputs((3, 2, 2, 1, 20))
    whole = attend(queries, keys, values, 0.25, by_products=by_products)
    keys[1:2, :, 5:6] = math.nan
    found = attend(queries, keys, values, 0.25, by_products=by_products)
    assert not mx.isfinite(found[1]).any()
    assert mx.array_equal(found[::2], whole[::2])
