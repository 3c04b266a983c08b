"""Quantised matrices, what they are in double precision, and how far a product may be off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

kernels: Any = pytest.importorskip(
    "headrace_kernels", reason="the kernels are not built: make kernels"
)

Doubles: TypeAlias = npt.NDArray[np.float64]

CHUNK = 32
"""Inputs that are rounded together."""
TYPES = (mx.float32, mx.float16, mx.bfloat16)


@dataclass(frozen=True)
class Matrix:
    """A packed matrix, [outputs, inputs], or several, beside what it was made from."""

    parts: tuple[mx.array, mx.array, mx.array]
    layout: Any
    packed: mx.array

    @property
    def weights(self) -> Doubles:
        """What is multiplied with, to the last digit."""
        scales, biases, whole = self._spread()
        return scales * whole + biases

    @property
    def sizes(self) -> Doubles:
        """How large the two parts of each weight are together."""
        scales, biases, whole = self._spread()
        return np.abs(scales) * whole + np.abs(biases)

    def times(self, x: mx.array) -> npt.NDArray[np.float32]:
        """The product, by the kernels."""
        y = kernels.multiply(x, self.packed, self.layout)
        return np.array(y.astype(mx.float32))

    def gathered(self, x: mx.array, indices: mx.array) -> npt.NDArray[np.float32]:
        """The products of rows with the matrices of their indices, by the kernels."""
        y = kernels.gather_multiply(x, indices, self.packed, self.layout)
        return np.array(y.astype(mx.float32))

    def __getitem__(self, number: int) -> Matrix:
        """One of several, by itself."""
        weight, scales, biases = (part[number] for part in self.parts)
        return packed(weight, scales, biases, self.layout.group_size, self.layout.bits)

    def _spread(self) -> tuple[Doubles, Doubles, Doubles]:
        weight, scales, biases = self.parts
        bits, group = self.layout.bits, self.layout.group_size
        words = np.array(weight)[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)
        whole = (words & ((1 << bits) - 1)).reshape(self.layout.outputs, -1).astype(np.float64)
        wide = [np.array(part.astype(mx.float32), np.float64) for part in (scales, biases)]
        spread = [np.repeat(part, group, axis=1) for part in wide]
        return spread[0], spread[1], whole


def packed(weight: mx.array, scales: mx.array, biases: mx.array, group: int, bits: int) -> Matrix:
    layout = kernels.layout_of(weight, scales, biases, group, bits)
    result = kernels.pack(weight, scales, biases, layout)
    return Matrix((weight, scales, biases), layout, result)


def matrix(
    outputs: int, inputs: int, group: int, bits: int, dtype: mx.Dtype = mx.float32, seed: int = 0
) -> Matrix:
    """A random one."""
    wide = mx.random.normal((outputs, inputs), key=mx.random.key(seed)).astype(dtype)
    return packed(*mx.quantize(wide, group, bits), group, bits)


def matrices(
    count: int,
    outputs: int,
    inputs: int,
    group: int,
    bits: int,
    dtype: mx.Dtype = mx.float32,
    seed: int = 0,
) -> Matrix:
    """Some random ones alike."""
    wide = mx.random.normal((count, outputs, inputs), key=mx.random.key(seed)).astype(dtype)
    return packed(*mx.quantize(wide, group, bits), group, bits)


def bound(matrix: Matrix, x: npt.NDArray[np.float32]) -> Doubles:
    """How far each result may be off, [rows, outputs]: what rounding a row to 8 bits may come to,
    and the rounding of float32, of which there are a few for each chunk."""
    rows, inputs = x.shape
    largest = np.abs(x.astype(np.float64)).reshape(rows, -1, CHUNK).max(axis=2)
    # Chunks of smaller numbers count as zeros.
    off = np.where(largest < 1e-35, largest, largest / 254 * (1 + 1e-6))
    spread = [np.repeat(each, CHUNK, axis=1) for each in (off, largest)]
    roundings = 2 * (inputs // CHUNK) + 8
    rounded: Doubles = spread[0] @ np.abs(matrix.weights).T
    of_floats: Doubles = spread[1] @ matrix.sizes.T * (roundings * 2.0**-24)
    return rounded + of_floats + 1e-38
