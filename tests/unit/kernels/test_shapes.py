"""Functions of any shape: near what double precision gives, and the same bits by every path."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.kernels.matrices import TYPES, kernels, matrix

PATHS = kernels.paths()
Floats = npt.NDArray[np.float32]

seeds = st.integers(0, 1000)
threads = st.integers(1, 4)
rows = st.lists(st.integers(0, 5), min_size=0, max_size=3).map(tuple)
"""The axes before the last."""


def numbers(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_all_paths(compute: Callable[[], mx.array]) -> Floats:
    """What is computed, which is the same by all paths."""
    found = []
    for path in PATHS:
        kernels.use(path)
        found.append(np.array(compute()))
    assert len({each.tobytes() for each in found}) == 1
    return found[0]


@settings(max_examples=examples(100))
@given(rows, st.integers(1, 600), seeds, threads)
def test_swiglu(shape: tuple[int, ...], size: int, seed: int, threads: int) -> None:
    kernels.set_threads(threads)
    gate, x = numbers(seed, *shape, size) * 5, numbers(seed + 1, *shape, size)
    found = by_all_paths(lambda: kernels.swiglu(mx.array(gate), mx.array(x)))
    expected = gate / (1 + np.exp(-gate.astype(np.float64))) * x
    assert found.shape == expected.shape
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-35)


@settings(max_examples=examples(100))
@given(rows, st.integers(1, 600), seeds, threads)
def test_rms_norm(shape: tuple[int, ...], size: int, seed: int, threads: int) -> None:
    kernels.set_threads(threads)
    x, weight = numbers(seed, *shape, size), numbers(seed + 1, size)
    found = by_all_paths(lambda: kernels.rms_norm(mx.array(x), mx.array(weight), 1e-5))
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    assert found.shape == expected.shape
    assert np.allclose(found, expected, rtol=2e-6, atol=1e-9)


@settings(max_examples=examples(150))
@given(
    st.tuples(*[st.integers(1, 5)] * 3), st.integers(1, 100), st.floats(0, 1), st.booleans(), seeds
)
def test_rotate(
    shape: tuple[int, int, int], size: int, part: float, neighbours: bool, seed: int
) -> None:
    turned = 2 * int(part * size / 2)
    x = numbers(seed, *shape, size)
    cos, sin = (numbers(seed + i, shape[0], 1, shape[2], size) for i in (1, 2))
    one = np.arange(0, turned, 2) if neighbours else np.arange(turned // 2)
    other = one + (1 if neighbours else turned // 2)
    expected = x.copy()
    expected[..., one] = x[..., one] * cos[..., one] - x[..., other] * sin[..., one]
    expected[..., other] = x[..., other] * cos[..., other] + x[..., one] * sin[..., other]
    arrays = [mx.array(each) for each in (x, cos, sin)]
    found = by_all_paths(lambda: kernels.rotate(*arrays, turned, neighbours))
    assert np.array_equal(found, expected)


@settings(max_examples=examples(100))
@given(
    st.sampled_from((4, 8)),
    st.sampled_from((32, 64, 128)),
    st.sampled_from(TYPES),
    st.integers(1, 70) | st.sampled_from((16, 32, 48, 64)),  # Also such as fill their blocks.
    st.integers(1, 5),
    st.data(),
)
def test_take(
    bits: int, group: int, dtype: mx.Dtype, outputs: int, groups: int, data: st.DataObject
) -> None:
    weights = matrix(outputs, group * groups, group, bits, dtype, data.draw(seeds))
    shape = data.draw(rows)
    count = int(np.prod(shape))
    # Beyond the last as well: some row, and never what lies behind the matrix.
    some = st.lists(st.integers(-3, outputs + 3), min_size=count, max_size=count)
    ids = np.array(data.draw(some), np.int64)
    indices = mx.array(ids.reshape(shape).astype(np.int32))
    found = np.array(kernels.take(indices, weights.packed, weights.layout))
    scales, biases = (part.astype(mx.float32) for part in weights.parts[1:])
    every = np.array(mx.dequantize(weights.parts[0], scales, biases, group, bits))
    assert found.shape == (*shape, group * groups)
    there = (ids >= 0) & (ids < outputs)
    assert np.array_equal(found.reshape(count, group * groups)[there], every[ids[there]])
