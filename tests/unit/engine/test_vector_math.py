"""Error bounds of the functions that are computed in vectors, against double precision."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from headrace_runner.models.vector_math import decay, swiglu

Floats = npt.NDArray[np.float64]

TINY = float(np.finfo(np.float32).tiny)


def positive(most: float) -> npt.NDArray[np.float32]:
    """Numbers from 0 to `most`, evenly and by orders of magnitude, denormals among them."""
    even = np.linspace(0, most, 1_000_001)
    orders = np.logspace(-45, math.log10(most), 500_001)
    return np.concatenate([even, orders]).astype(np.float32)


def exact_silu(gate: Floats) -> Floats:
    tail: Floats = np.exp(-np.abs(gate))
    return np.where(gate < 0, gate * tail, gate) / (1 + tail)


def run_swiglu(gate: npt.NDArray[np.float32], x: npt.NDArray[np.float32]) -> Floats:
    return np.array(swiglu(mx.array(gate), mx.array(x))).astype(np.float64)


def test_decay_is_off_by_four_millionths_at_most() -> None:
    x = positive(3e38)
    found = np.array(decay(mx.array(x))).astype(np.float64)
    assert np.abs(found - np.exp(-x.astype(np.float64))).max() < 4e-6


@pytest.mark.parametrize(("most", "bound"), [(1, 4e-6), (8, 2e-5), (16, 1e-3)])
def test_decay_is_close_in_relation_too_where_it_counts(most: float, bound: float) -> None:
    x = positive(most)
    found = np.array(decay(mx.array(x))).astype(np.float64)
    assert np.abs(found / np.exp(-x.astype(np.float64)) - 1).max() < bound


def test_decay_of_a_larger_number_is_never_larger() -> None:
    x = np.sort(positive(200))
    found = np.array(decay(mx.array(x)))
    assert (np.diff(found) <= 0).all()
    assert found.max() == 1


def test_decay_at_the_ends_of_the_range() -> None:
    ends = mx.array([0.0, 1e-45, TINY, 3e38, math.inf])
    assert decay(ends).tolist() == [1, 1, 1, 0, 0]
    assert mx.isnan(decay(mx.array([math.nan]))).all()


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (2, 3, 1), (5, 1, 7)])
def test_shapes_are_those_of_the_input(shape: tuple[int, ...]) -> None:
    x = mx.ones(shape)
    assert decay(x).shape == swiglu(x, x).shape == shape


def test_swiglu_of_any_gate() -> None:
    sizes = positive(1e38)
    gate = np.concatenate([-sizes, sizes])
    exact = exact_silu(gate.astype(np.float64))
    found = run_swiglu(gate, np.ones_like(gate))
    assert np.isfinite(found).all()
    assert (np.abs(found - exact) <= 2e-6 * np.maximum(1, np.abs(exact))).all()


@pytest.mark.parametrize(("most", "bound"), [(1, 4e-6), (8, 2e-5), (16, 1e-3)])
def test_small_results_of_negative_gates_are_close_in_relation(most: float, bound: float) -> None:
    gate = -positive(most)
    gate = gate[gate < -TINY]
    found = run_swiglu(gate, np.ones_like(gate))
    assert np.abs(found / exact_silu(gate.astype(np.float64)) - 1).max() < bound


def test_swiglu_is_linear_in_what_it_gates() -> None:
    random = np.random.default_rng(0)
    gate, x = random.normal(0, 10, (2, 100_000)).astype(np.float32)
    exact = exact_silu(gate.astype(np.float64)) * x
    assert np.abs(run_swiglu(gate, x) - exact).max() < 1e-5 * np.abs(exact).max()
    assert run_swiglu(gate, np.zeros_like(x)).any() == np.False_


def test_swiglu_is_what_mlx_computes() -> None:
    gate, x = mx.random.normal((2, 50_000), key=mx.random.key(1)) * 5
    wanted = gate * mx.sigmoid(gate) * x
    assert mx.allclose(swiglu(gate, x), wanted, rtol=1e-5, atol=1e-5)


def test_swiglu_at_the_ends_of_the_range() -> None:
    gates = mx.array([0.0, -0.0, 1e-45, -1e-45, 1e38, -1e38])
    found = swiglu(gates, mx.ones(6))
    assert mx.allclose(found, mx.array([0, 0, 0, 0, 1e38, 0]), atol=1e-44)
    for gate in (math.inf, math.nan):
        # What has overflowed must not come out as a number again.
        assert not mx.isfinite(swiglu(mx.array([gate]), mx.ones(1))).any()
