"""Functions of numbers and of rows."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from tests.unit.kernels.matrices import kernels

PATHS = kernels.paths()
Floats = npt.NDArray[np.float32]


def swiglu(gate: Floats, x: Floats) -> Floats:
    return np.array(kernels.swiglu(mx.array(gate), mx.array(x)))


def gelu(x: Floats, by_tanh: bool) -> Floats:
    return np.array(kernels.gelu(mx.array(x), by_tanh))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [1, 15, 16, 100, 20_001])
def test_swiglu(size: int, path: str) -> None:
    kernels.use(path)
    gate = np.linspace(-90, 90, size, dtype=np.float32)
    x = np.linspace(1, 3, size, dtype=np.float32)
    expected = gate / (1 + np.exp(-gate.astype(np.float64))) * x
    assert np.allclose(swiglu(gate, x), expected, rtol=1e-6, atol=1e-35)


@pytest.mark.parametrize("path", PATHS)
def test_swiglu_of_what_is_extreme(path: str) -> None:
    kernels.use(path)
    gate = np.array([-np.inf, -1e30, -200, -0.0, 0, 1e-40, 1e30, np.inf, np.nan, 1], np.float32)
    x = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, np.nan], np.float32)
    found = swiglu(gate, x)
    # Minus infinity times nothing at all: MLX has NaN there as well.
    assert np.isnan(found[[0, 8, 9]]).all()
    assert (found[1:5] == 0).all()
    assert found[6:8].tolist() == [np.float32(1e30), np.inf]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [1, 15, 16, 100, 49_152])
def test_weights_of_logits(size: int, path: str) -> None:
    kernels.use(path)
    logits = np.random.default_rng(size).normal(0, 9, (5, size)).astype(np.float32)
    logits[0, : size // 2] = -np.inf
    factors = np.array([[1.44], [0.2], [5.0], [1.4e30], [100.0]], np.float32)
    found = np.array(kernels.weigh(mx.array(logits), mx.array(factors)))
    wide = logits.astype(np.float64)
    with np.errstate(under="ignore"):
        expected = 2.0 ** ((wide - wide.max(axis=1, keepdims=True)) * factors)
    assert (found.max(axis=1) == 1).all()
    # Exponents, of up to 126, are rounded to float32.
    assert np.allclose(found, np.maximum(expected, 2.0**-126), rtol=2e-5, atol=0)
    # A row by itself is the same to the bit.
    alone = kernels.weigh(mx.array(logits[2:3]), mx.array(factors[2:3]))
    assert np.array(alone).tobytes() == found[2:3].tobytes()


@pytest.mark.parametrize("path", PATHS)
def test_powers_of_two_are_precise(path: str) -> None:
    kernels.use(path)
    x = np.linspace(-126, 0, 100_001, dtype=np.float32)[None]
    found = np.array(kernels.weigh(mx.array(x), mx.ones((1, 1)))).astype(np.float64)
    assert np.abs(found / 2.0 ** x.astype(np.float64) - 1).max() < 3e-7
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize("path", PATHS)
def test_weights_of_logits_that_are_none(path: str) -> None:
    kernels.use(path)
    logits = np.array([[-np.inf] * 20, [np.nan] * 20, [0.0, np.nan] + [-np.inf] * 18], np.float32)
    found = np.array(kernels.weigh(mx.array(logits), mx.ones((3, 1))))
    assert found[2, 0] == 1
    found[2, 0] = 2.0**-126
    assert (found == 2.0**-126).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("by_tanh", [False, True])
@pytest.mark.parametrize("size", [1, 15, 16, 100, 20_001])
def test_gelu(size: int, by_tanh: bool, path: str) -> None:
    kernels.use(path)
    x = np.linspace(-12, 12, size, dtype=np.float32)
    wide = x.astype(np.float64)
    if by_tanh:
        share = (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))) / 2
    else:
        share = np.array([(1 + math.erf(each / math.sqrt(2))) / 2 for each in wide])
    off = np.abs(gelu(x, by_tanh) - wide * share)
    assert (off <= 4e-7 * np.abs(wide)).all(), (off / np.abs(wide)).max()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("by_tanh", [False, True])
def test_gelu_of_what_is_extreme(by_tanh: bool, path: str) -> None:
    kernels.use(path)
    x = np.array([-np.inf, np.nan, -1e30, -200, -0.0, 0, 1e-40, 1e30, np.inf], np.float32)
    found = gelu(x, by_tanh)
    # Minus infinity times nothing at all: MLX has NaN there as well.
    assert np.isnan(found[:2]).all()
    assert (found[2:6] == 0).all()
    assert abs(found[6] - 5e-41) < 2e-45
    assert found[7:].tolist() == [np.float32(1e30), np.inf]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", [1, 16, 100, 576])
def test_rms_norm(size: int, path: str) -> None:
    kernels.use(path)
    source = np.random.default_rng(size)
    x, weight = (source.normal(size=s).astype(np.float32) for s in ((7, 3, size), (size,)))
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    found = np.array(kernels.rms_norm(mx.array(x), mx.array(weight), 1e-5))
    assert np.allclose(found, expected, rtol=2e-6, atol=1e-9)
    assert not np.allclose(found, expected / (1 + 1e-4), rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_rms_norm_shows_what_is_not_finite_in_its_row_alone(path: str) -> None:
    kernels.use(path)
    x = np.ones((3, 40), np.float32)
    x[1, 17] = np.nan
    found = np.array(kernels.rms_norm(mx.array(x), mx.ones(40), 1e-5))
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize(("turned", "size"), [(64, 64), (32, 80), (2, 3), (0, 8)])
def test_rotate(turned: int, size: int, neighbours: bool, path: str) -> None:
    kernels.use(path)
    source = np.random.default_rng(size)
    x = source.normal(size=(5, 3, 2, size)).astype(np.float32)
    angles = source.normal(size=(5, 1, 2, size)).astype(np.float32)
    one = np.arange(0, turned, 2) if neighbours else np.arange(turned // 2)
    other = one + (1 if neighbours else turned // 2)
    angles[..., other] = angles[..., one]
    cos, sin = np.cos(angles), np.sin(angles)
    expected = x.copy()
    expected[..., one] = x[..., one] * cos[..., one] - x[..., other] * sin[..., one]
    expected[..., other] = x[..., other] * cos[..., other] + x[..., one] * sin[..., other]
    found = kernels.rotate(*map(mx.array, (x, cos, sin)), turned, neighbours)
    assert np.array_equal(np.array(found), expected)


def test_all_paths_give_the_same_bits() -> None:
    x = np.random.default_rng(0).normal(size=(40, 1000)).astype(np.float32) * 20
    found = set()
    for path in PATHS:
        for threads in (1, 3):
            kernels.use(path)
            kernels.set_threads(threads)
            norm = kernels.rms_norm(mx.array(x), mx.array(x[0]), 1e-5)
            results = swiglu(x, x + 1), gelu(x, False), gelu(x, True), np.array(norm)
            found.add(b"".join(result.tobytes() for result in results))
    assert len(found) == 1


@pytest.mark.parametrize("by_tanh", [False, True])
def test_a_number_gives_the_same_wherever_it_is(by_tanh: bool) -> None:
    x = np.random.default_rng(0).normal(size=1001).astype(np.float32) * 3
    whole = gelu(x, by_tanh)
    for first, last in ((0, 1), (3, 20), (17, 1001), (1000, 1001)):
        assert gelu(x[first:last], by_tanh).tobytes() == whole[first:last].tobytes()


def test_gelu_in_what_is_compiled_for_any_shape() -> None:
    compiled = mx.compile(lambda gate, x: kernels.gelu(gate, True) * x, shapeless=True)
    for shape in ((3, 5), (7, 40)):
        x = mx.random.normal(shape)
        assert mx.array_equal(compiled(x, x), kernels.gelu(x, True) * x)


def test_arrays_that_lie_in_pieces() -> None:
    x = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    wide = mx.array(np.pad(x, [(0, 0), (0, 7)]))[:, :30]
    across = mx.array(np.ascontiguousarray(x.T)).T
    same = mx.broadcast_to(mx.array(x[:1]), (20, 30))
    for each in (wide, across):
        assert np.array_equal(gelu(x, False), np.array(kernels.gelu(each, False)))
    assert np.array_equal(swiglu(x, x), np.array(kernels.swiglu(wide, across)))
    assert np.array_equal(swiglu(x[:1], x[:1])[0], np.array(kernels.swiglu(same, same))[7])
    norms = [kernels.rms_norm(each, mx.array(x[0]), 1e-5) for each in (mx.array(x), wide, across)]
    assert mx.array_equal(norms[0], norms[1])
    assert mx.array_equal(norms[0], norms[2])


def test_no_rows() -> None:
    assert kernels.swiglu(mx.zeros((0, 4)), mx.zeros((0, 4))).shape == (0, 4)
    assert kernels.gelu(mx.zeros((0, 4)), True).shape == (0, 4)
    assert kernels.rms_norm(mx.zeros((0, 4)), mx.ones(4), 1e-5).shape == (0, 4)


@pytest.mark.parametrize("shape", [(3, 5), (4,)])
def test_what_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="headrace_kernels"):
        kernels.swiglu(mx.ones((3, 4)), mx.ones(shape))
    with pytest.raises(ValueError, match="headrace_kernels"):
        kernels.rms_norm(mx.ones((3, 3)), mx.ones(shape), 1e-5)
    with pytest.raises(ValueError, match="headrace_kernels"):
        kernels.gelu(mx.ones(shape, mx.float16), True)
