"""Functions that MLX computes on a CPU one number at a time, from operations it computes many of.

On a CPU MLX calls the C library's `exp` for each number, which takes some fifty times as long as a
product. Here it is a short series, squared again and again: exp(x) = exp(x / 2**k) ** 2**k. These
are products and sums alone, so that the compiler behind `mx.compile` makes one loop of vector
instructions of them. Float32 in and out.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx

_SERIES = (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)
"""Of exp around 0, highest power first."""
_SQUARINGS = 5


def _growth(x: mx.array) -> mx.array:
    """exp(x) for x >= 0, infinity where that is too large.

    Rounding is off by some 3e-6 of the value, and for large x the series is short of it: by 5e-4
    at 16, where exp(-x) hardly counts any more.
    """
    x = x * (1 / 2**_SQUARINGS)
    power = x * _SERIES[0] + _SERIES[1]
    for factor in _SERIES[2:]:
        power = power * x + factor
    for _ in range(_SQUARINGS):
        power = power * power
    return power


@partial(mx.compile, shapeless=True)
def decay(x: mx.array) -> mx.array:
    """exp(-x) for x >= 0, off by at most 4e-6; 0 for infinity."""
    return 1.0 / _growth(x)


@partial(mx.compile, shapeless=True)
def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) * x, as in mlx-lm: silu(g) = g / (1 + exp(-g)). For finite gates.

    In terms of a = |g| alone, whose exp(-a) cannot overflow: where g is negative the fraction is
    exp(-a) / (1 + exp(-a)), and g + a vanishes; elsewhere it is 1 / (1 + exp(-a)), and g - a does.
    """
    size = mx.abs(gate)
    tail = 1.0 / _growth(size)
    return ((gate + size) + (gate - size) * tail) * x * (0.5 / (1.0 + tail))
