"""Products of rows with the matrix that each of them is given to, as in a mixture of experts."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.kernels.matrices import TYPES, Matrix, bound, kernels, matrices, matrix

BITS = (4, 8)
GROUPS = (32, 64, 128)
PATHS = kernels.paths()
Floats = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]


def rows(*shape: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_by_one(weights: Matrix, x: Floats, chosen: Numbers) -> Floats:
    """What `multiply` makes of each row with its matrix by itself."""
    alone = [weights[number] for number in range(weights.layout.matrices)]
    found = [alone[n].times(mx.array(row[None])) for row, n in zip(x, chosen, strict=True)]
    return np.concatenate(found)


def assert_near(weights: Matrix, x: Floats, chosen: Numbers) -> None:
    found = weights.gathered(mx.array(x), mx.array(chosen))
    for number in range(weights.layout.matrices):
        mine, one = x[chosen == number], weights[number]
        off = np.abs(found[chosen == number] - mine.astype(np.float64) @ one.weights.T)
        assert (off <= bound(one, mine)).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", BITS)
def test_a_product_is_as_near_as_the_rounding_allows(
    bits: int, group: int, dtype: mx.Dtype, path: str
) -> None:
    kernels.use(path)
    weights = matrices(5, 83, 256, group, bits, dtype)
    x, chosen = rows(23, 256), np.random.default_rng(0).integers(0, 5, 23)
    assert_near(weights, x, chosen)
    # Near to what MLX makes of the same rows in float32, and only with their own matrices.
    found = weights.gathered(mx.array(x), mx.array(chosen))
    scales, biases = (part.astype(mx.float32) for part in weights.parts[1:])
    full = mx.dequantize(weights.parts[0], scales, biases, group, bits).swapaxes(1, 2)
    products = mx.gather_mm(mx.array(x)[:, None], full, rhs_indices=mx.array(chosen))
    expected = np.array(products)[:, 0]
    assert np.linalg.norm(found - expected) < 0.007 * np.linalg.norm(expected)
    shifted = weights.gathered(mx.array(x), mx.array((chosen + 1) % 5))
    assert np.linalg.norm(shifted - expected) > np.linalg.norm(expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [0, 1e-40, 1e-36, 1e30])
def test_rows_that_are_hard_to_round(scale: float, path: str) -> None:
    kernels.use(path)
    x = rows(12, 128) * np.float32(scale)
    x[:, ::37] *= np.float32(1e6)
    assert_near(matrices(3, 40, 128, 64, 4, mx.float16), x, np.arange(12) % 3)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Matrix, Floats, Numbers]:
    """Any shape: matrices that no row, one or all have; rows that are sorted and that are not."""
    bits, group = draw(st.sampled_from(BITS)), draw(st.sampled_from(GROUPS))
    count, outputs = draw(st.integers(1, 9)), draw(st.integers(1, 70))
    inputs, seed = group * draw(st.integers(1, 4)), draw(st.integers(0, 1000))
    weights = matrices(count, outputs, inputs, group, bits, draw(st.sampled_from(TYPES)), seed)
    chosen = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=50))
    if draw(st.booleans()):
        chosen.sort()
    return weights, rows(len(chosen), inputs, seed=seed), np.array(chosen)


@settings(max_examples=examples(150))
@given(problems(), st.integers(1, 4), st.data())
def test_a_row_is_what_it_is_alone_by_any_path_and_any_threads(
    problem: tuple[Matrix, Floats, Numbers], threads: int, data: st.DataObject
) -> None:
    weights, x, chosen = problem
    kernels.set_threads(1)
    alone = one_by_one(weights, x, chosen)
    kernels.set_threads(threads)
    for path in PATHS:
        kernels.use(path)
        assert weights.gathered(mx.array(x), mx.array(chosen)).tobytes() == alone.tobytes()
    # In another order, and beside fewer.
    order = data.draw(st.permutations(range(len(x))))
    some = order[: data.draw(st.integers(1, len(x)))]
    found = weights.gathered(mx.array(x[some]), mx.array(chosen[some]))
    assert found.tobytes() == alone[some].tobytes()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("ordered", [False, True])
def test_many_rows_by_several_threads_are_what_they_are_alone(ordered: bool, path: str) -> None:
    """Enough of them that rows and outputs are both taken in parts."""
    kernels.use(path)
    weights = matrices(4, 300, 1024, 64, 4, mx.bfloat16)
    # One matrix has most of the rows, and one has none.
    chosen = np.random.default_rng(0).choice([0, 1, 3], 700, p=[0.8, 0.1, 0.1])
    chosen = np.sort(chosen) if ordered else chosen
    x = rows(700, 1024)
    kernels.set_threads(3)
    together = weights.gathered(mx.array(x), mx.array(chosen))
    some = [0, 255, 256, 699]
    assert together[some].tobytes() == one_by_one(weights, x[some], chosen[some]).tobytes()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_shows_in_its_row_and_in_no_other(bad: float, path: str) -> None:
    kernels.use(path)
    weights, x, chosen = matrices(3, 48, 128, 32, 4), rows(9, 128), np.array([0, 1, 2] * 3)
    whole = weights.gathered(mx.array(x), mx.array(chosen))
    x[4, 77] = bad
    found = weights.gathered(mx.array(x), mx.array(chosen))
    assert np.isnan(found[4]).all()
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert (found[others] == whole[others]).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scales_that_are_not_finite_show_in_their_matrix(bad: float, path: str) -> None:
    kernels.use(path)
    weight, scales, biases = matrices(3, 20, 64, 32, 8).parts
    scales[1, 7, 1] = bad
    layout = kernels.layout_of(weight, scales, biases, 32, 8)
    broken = Matrix((weight, scales, biases), layout, kernels.pack(weight, scales, biases, layout))
    found = broken.gathered(mx.array(rows(6, 64)), mx.array([0, 1, 2] * 2))
    shown = ~np.isfinite(found)
    assert shown[[1, 4], 7].all()
    assert shown.sum() == 2


@pytest.mark.parametrize("far", [5, 1 << 20, -1, -(1 << 31)])
def test_an_index_beyond_the_last_matrix_harms_no_other_row(far: int) -> None:
    weights, x = matrices(5, 40, 64, 32, 4), rows(4, 64)
    found = weights.gathered(mx.array(x), mx.array([0, far, 2, 4], mx.int32))
    whole = one_by_one(weights, x[[0, 2, 3]], np.array([0, 2, 4]))
    assert found[[0, 2, 3]].tobytes() == whole.tobytes()
    assert np.isfinite(found[1]).all()


def test_one_matrix_is_the_plain_product() -> None:
    weights, x = matrices(1, 40, 64, 32, 4), mx.array(rows(9, 64))
    plain = weights.times(x)
    assert weights.gathered(x, mx.zeros(9, mx.uint32)).tobytes() == plain.tobytes()
    # Packed from two dimensions or from three.
    assert weights[0].times(x).tobytes() == plain.tobytes()


def test_rows_and_indices_are_broadcast_as_by_mlx() -> None:
    """As a mixture calls it: a row of x for several experts, and then one for each."""
    weights = matrices(5, 40, 64, 32, 8)
    indices = mx.array(np.random.default_rng(2).integers(0, 5, (2, 3, 4)))
    for shape in ((2, 3, 1, 1, 64), (2, 3, 4, 1, 64), (1, 1, 4, 3, 64), (6, 64), (64,)):
        x = mx.array(rows(*shape))
        expected = mx.gather_qmm(
            x if x.ndim > 1 else x[None],
            *weights.parts,
            rhs_indices=indices,
            transpose=True,
            group_size=32,
            bits=8,
        )
        found = weights.gathered(x, indices[..., None])
        assert found.shape == expected.shape
        assert np.allclose(found, expected, atol=0.3)
    # Every second row and every second number, as they lie in a larger array.
    x = mx.array(rows(12, 128))
    found = weights.gathered(x[::2, ::2], indices[0, 0, :1])
    again = weights.gathered(mx.contiguous(x[::2, ::2]), indices[0, 0, :1])
    assert found.tobytes() == again.tobytes()


def test_shapes_types_and_no_rows() -> None:
    weights = matrices(3, 30, 64, 32, 4)
    for dtype in TYPES:
        y = kernels.gather_multiply(
            mx.ones((2, 64), dtype), mx.array([0, 2], mx.uint8), weights.packed, weights.layout
        )
        assert (y.shape, y.dtype) == ((2, 30), dtype)
    assert weights.gathered(mx.ones((2, 0, 64)), mx.zeros((2, 0), mx.int32)).shape == (2, 0, 30)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_rows_of_several_matrices_go_on(dtype: mx.Dtype) -> None:
    weights = matrices(3, 50, 128, 64, 4, dtype)
    ids = mx.array([[3, 49], [50, 149]])
    found = kernels.take(ids, weights.packed, weights.layout)
    scales, biases = (part.astype(mx.float32) for part in weights.parts[1:])
    expected = mx.dequantize(weights.parts[0], scales, biases, 64, 4).reshape(150, 128)[ids]
    assert mx.array_equal(found, expected)
    beyond = kernels.take(mx.array([150, 1 << 20]), weights.packed, weights.layout)
    assert bool(mx.isfinite(beyond).all())


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("one matrix", lambda m: kernels.multiply(mx.ones((2, 64)), m.packed, m.layout)),
        ("64 numbers", lambda m: m.gathered(mx.ones((2, 32)), mx.array([0, 1]))),
        ("float32", lambda m: m.gathered(mx.ones((2, 64), mx.int32), mx.array([0, 1]))),
        ("whole numbers", lambda m: m.gathered(mx.ones((2, 64)), mx.ones(2))),
        ("broadcast", lambda m: m.gathered(mx.ones((2, 64)), mx.array([0, 1, 2]))),
        (
            "packed",
            lambda m: kernels.gather_multiply(
                mx.ones((1, 64)), mx.array([0]), matrix(30, 64, 32, 4).packed, m.layout
            ),
        ),
        (
            "outputs, inputs",
            lambda m: kernels.layout_of(m.parts[0], m.parts[1][0], m.parts[2][0], 32, 4),
        ),
    ],
)
def test_what_does_not_fit_is_refused(says: str, call: Any) -> None:
    with pytest.raises(ValueError, match=says):
        call(matrices(3, 30, 64, 32, 4))
