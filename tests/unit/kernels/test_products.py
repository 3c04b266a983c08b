"""Products with quantised weights: near enough, and the same however they are computed."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.kernels.matrices import TYPES, Matrix, bound, kernels, matrix, packed

BITS = (4, 8)
GROUPS = (32, 64, 128)
PATHS = kernels.paths()
Floats = npt.NDArray[np.float32]


def rows(count: int, inputs: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, inputs)).astype(np.float32)


def hard(kind: str, inputs: int) -> Floats:
    """A few rows that are hard to round, or to add up."""
    x = rows(5, inputs)
    if kind == "zeros":
        x[:, : inputs // 2] = 0
    elif kind == "denormal":
        x *= np.float32(1e-40)
    elif kind == "small":
        x *= np.float32(1e-36)
    elif kind == "outliers":
        x[:, ::37] *= np.float32(1e6)
    elif kind == "huge":
        x *= np.float32(1e30)
    elif kind == "extremes":
        # Every rounded number is 127 or -127: the largest sums there are.
        x = np.where(x > 0, np.float32(3), np.float32(-3))
        x[0] = 3
        x[1] = -3
    return x


def assert_near(weights: Matrix, x: Floats) -> None:
    expected = x.astype(np.float64) @ weights.weights.T
    off = np.abs(weights.times(mx.array(x)) - expected)
    assert (off <= bound(weights, x)).all(), (off / bound(weights, x)).max()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_a_product_is_as_near_as_the_rounding_allows(
    bits: int, group: int, dtype: mx.Dtype, path: str
) -> None:
    kernels.use(path)
    weights, x = matrix(83, 384, group, bits, dtype), rows(11, 384)
    assert_near(weights, x)
    # The bound is for the worst of cases; in the mean it is far less.
    expected = x.astype(np.float64) @ weights.weights.T
    off = weights.times(mx.array(x)) - expected
    assert np.linalg.norm(off) < 0.007 * np.linalg.norm(expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["zeros", "denormal", "small", "outliers", "huge", "extremes"])
def test_rows_that_are_hard_to_round(kind: str, bits: int, path: str) -> None:
    kernels.use(path)
    assert_near(matrix(40, 256, 64, bits, mx.float16), hard(kind, 256))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bits", BITS)
def test_the_largest_sums_do_not_overflow(bits: int, path: str) -> None:
    kernels.use(path)
    weight = mx.full((32, 128 * bits // 32), 0xFFFFFFFF, mx.uint32)
    ones = mx.ones((32, 1))
    full = packed(weight, ones, mx.zeros((32, 1)), 128, bits)
    assert (full.weights == (1 << bits) - 1).all()
    result = full.times(mx.array(np.stack([np.full(128, 127), np.full(128, -127)]), mx.float32))
    largest = 128 * 127 * ((1 << bits) - 1)
    assert result.tolist() == [[largest] * 32, [-largest] * 32]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_its_row_and_in_no_other(bad: float, path: str) -> None:
    kernels.use(path)
    weights, x = matrix(48, 128, 32, 4), rows(9, 128)
    whole = weights.times(mx.array(x))
    x[4, 77] = bad
    result = weights.times(mx.array(x))
    assert np.isnan(result[4]).all()
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert (result[others] == whole[others]).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scales_that_are_not_finite_show_in_their_output(bad: float, path: str) -> None:
    kernels.use(path)
    weight, scales, biases = matrix(20, 64, 32, 8).parts
    scales[7, 1] = bad
    result = packed(weight, scales, biases, 32, 8).times(mx.array(rows(3, 64)))
    assert (~np.isfinite(result)).sum(axis=0).tolist() == [3 if i == 7 else 0 for i in range(20)]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Matrix, Floats]:
    """Any shape: outputs that fill no block, rows that fill no tile."""
    bits, group = draw(st.sampled_from(BITS)), draw(st.sampled_from(GROUPS))
    inputs = group * draw(st.integers(1, 6))
    outputs, count = draw(st.integers(1, 70)), draw(st.integers(1, 40))
    seed = draw(st.integers(0, 1000))
    weights = matrix(outputs, inputs, group, bits, draw(st.sampled_from(TYPES)), seed)
    scale = np.float32(draw(st.sampled_from([1e-36, 1e-3, 1.0, 1e4, 1e32])))
    return weights, rows(count, inputs, seed) * scale


@settings(max_examples=examples(150))
@given(problems())
def test_all_paths_give_the_same_bits(problem: tuple[Matrix, Floats]) -> None:
    weights, x = problem
    assert_near(weights, x)
    results = []
    for path in PATHS:
        kernels.use(path)
        results.append(weights.times(mx.array(x)).tobytes())
    assert len(set(results)) == 1


@settings(max_examples=examples(150))
@given(problems(), st.integers(1, 4), st.sampled_from(PATHS), st.randoms())
def test_a_row_depends_neither_on_its_neighbours_nor_on_the_threads(
    problem: tuple[Matrix, Floats], threads: int, path: str, source: random.Random
) -> None:
    weights, x = problem
    kernels.use(path)
    kernels.set_threads(1)
    alone = np.concatenate([weights.times(mx.array(row[None])) for row in x])
    order = list(range(len(x)))
    source.shuffle(order)
    some = order[: source.randint(1, len(x))]
    kernels.set_threads(threads)
    together = weights.times(mx.array(x[some]))
    assert together.tobytes() == alone[some].tobytes()


@pytest.mark.parametrize("path", PATHS)
def test_many_rows_by_several_threads_are_what_they_are_alone(path: str) -> None:
    """Enough of them that rows and outputs are both taken in parts."""
    kernels.use(path)
    weights, x = matrix(500, 1024, 64, 4, mx.bfloat16), rows(700, 1024)
    kernels.set_threads(3)
    together = weights.times(mx.array(x))
    for row in (0, 255, 256, 699):
        assert together[row].tobytes() == weights.times(mx.array(x[row])).tobytes()


def test_several_threads_of_mlx_may_compute_at_once() -> None:
    """One of them has the helpers, the others work alone."""
    weights, x = matrix(500, 256, 32, 4), rows(64, 256)
    kernels.set_threads(3)
    expected = weights.times(mx.array(x))

    def compute(_: int) -> bool:
        try:
            with mx.stream(mx.new_stream(mx.cpu)):
                found = [weights.times(mx.array(x)) for _ in range(40)]
            return all((each == expected).all() for each in found)
        finally:
            mx.clear_streams()

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(compute, range(3)))


def test_threads_come_and_go() -> None:
    weights, x = matrix(500, 256, 32, 4), rows(64, 256)
    expected = weights.times(mx.array(x))
    for threads in (1, 4, 2, 1, 3, 5):
        kernels.set_threads(threads)
        assert kernels.threads() == threads
        assert (weights.times(mx.array(x)) == expected).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_rows_of_an_embedding_are_what_mlx_gives(bits: int, dtype: mx.Dtype) -> None:
    weights = matrix(50, 128, 64, bits, dtype)
    ids = mx.array([[3, 49], [0, 17]])
    found = kernels.take(ids, weights.packed, weights.layout)
    scales, biases = (part.astype(mx.float32) for part in weights.parts[1:])
    expected = mx.dequantize(weights.parts[0], scales, biases, 64, bits)[ids]
    assert found.shape == (2, 2, 128)
    assert mx.array_equal(found, expected)


def test_shapes_types_and_no_rows() -> None:
    weights = matrix(30, 64, 32, 4)
    for shape in ((64,), (3, 64), (2, 0, 64), (2, 3, 64)):
        for dtype in TYPES:
            y = kernels.multiply(mx.ones(shape, dtype), weights.packed, weights.layout)
            assert (y.shape, y.dtype) == ((*shape[:-1], 30), dtype)
    # Not in one piece in memory.
    x = mx.array(rows(64, 6))
    assert mx.array_equal(
        kernels.multiply(x.T, weights.packed, weights.layout),
        kernels.multiply(mx.contiguous(x.T), weights.packed, weights.layout),
    )


def test_a_packed_matrix_may_be_copied_to_another_place() -> None:
    weights, x = matrix(30, 64, 32, 4), mx.array(rows(2, 64))
    data = np.array(weights.packed)
    expected = weights.times(x)
    for shift in range(1, 70, 13):
        room = mx.concatenate([mx.zeros(shift, mx.uint8), mx.array(data.reshape(-1))])
        copied = Matrix(weights.parts, weights.layout, room[shift:].reshape(-1, 64))
        assert (copied.times(x) == expected).all()


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("bits", lambda m: kernels.layout_of(*m.parts, 32, 3)),
        ("group_size", lambda m: kernels.layout_of(*m.parts, 16, 4)),
        ("inputs / group_size", lambda m: kernels.layout_of(*m.parts, 64, 4)),
        ("64 numbers", lambda m: kernels.multiply(mx.ones((2, 32)), m.packed, m.layout)),
        ("float32", lambda m: kernels.multiply(mx.ones((2, 64), mx.int32), m.packed, m.layout)),
        ("packed", lambda m: kernels.multiply(mx.ones((2, 64)), m.packed[1:], m.layout)),
        ("whole numbers", lambda m: kernels.take(mx.ones(2), m.packed, m.layout)),
        ("portable", lambda m: kernels.use("sse")),
    ],
)
def test_what_does_not_fit_is_refused(says: str, call: Any) -> None:
    with pytest.raises(ValueError, match=says):
        call(matrix(30, 64, 32, 4))
