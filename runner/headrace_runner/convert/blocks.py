"""GGML's tensor blocks as MLX arrays. Quantised blocks stay quantised, to the bit where possible.

Q4_0, Q4_1 and Q8_0 become MLX affine triplets (weight, scales, biases) of group size 32; the
other types become plain arrays. Pure: takes bytes, never touches a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import mlx.core as mx
import numpy as np
import numpy.typing as npt

GROUP_SIZE = 32
F = TypeVar("F", bound=np.floating)
_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Plain:
    """An array as it is; float32, float16 or bfloat16."""

    weight: mx.array


@dataclass(frozen=True)
class Quantized:
    """w = scales * weight + biases; weight (rows, cols * bits / 32) uint32, the rest float16."""

    weight: mx.array
    scales: mx.array
    biases: mx.array
    bits: int


def to_mlx(type_name: str, data: _Bytes, shape: tuple[int, ...]) -> Plain | Quantized:
    """The tensor whose stored bytes are `data` and whose row-major shape is `shape`.

    Raises ValueError where a scale or an element is infinite or not a number, which no trained
    model has: the file is damaged.
    """
    return _CONVERTERS[type_name](data, shape)


def _float32(data: _Bytes, shape: tuple[int, ...]) -> Plain:
    return Plain(mx.array(_finite(data.view("<f4")).reshape(shape)))


def _float16(data: _Bytes, shape: tuple[int, ...]) -> Plain:
    return Plain(mx.array(_finite(data.view("<f2")).reshape(shape)))


def _bfloat16(data: _Bytes, shape: tuple[int, ...]) -> Plain:
    bits = data.view("<u2")
    if ((bits & 0x7F80) == 0x7F80).any():
        raise ValueError("an element is not a finite number")
    return Plain(mx.array(bits.reshape(shape)).view(mx.bfloat16))


def _q4_0(data: _Bytes, shape: tuple[int, ...]) -> Quantized:
    """Blocks {float16 d, 32 nibbles q}: w = d * (q - 8)."""
    blocks = data.reshape(-1, 18)
    scales = _halves(blocks[:, :2])
    return _quantized(_nibbles(blocks[:, 2:]), scales, _times(scales, -8), 4, shape)


def _q4_1(data: _Bytes, shape: tuple[int, ...]) -> Quantized:
    """Blocks {float16 d, float16 m, 32 nibbles q}: w = d * q + m."""
    blocks = data.reshape(-1, 20)
    return _quantized(
        _nibbles(blocks[:, 4:]), _halves(blocks[:, :2]), _halves(blocks[:, 2:4]), 4, shape
    )


def _q8_0(data: _Bytes, shape: tuple[int, ...]) -> Quantized:
    """Blocks {float16 d, 32 int8 q}: w = d * q, here with q + 128 unsigned."""
    blocks = data.reshape(-1, 34)
    scales = _halves(blocks[:, :2])
    return _quantized(blocks[:, 2:] ^ np.uint8(0x80), scales, _times(scales, -128), 8, shape)


def _q6_k(data: _Bytes, shape: tuple[int, ...]) -> Plain:
    """Blocks {128 low nibbles, 64 high pairs, 16 int8 scales, float16 d} of 256 elements.

    MLX has no groups of 16, so these are dequantised to float16.
    """
    blocks = data.reshape(-1, 210)
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high = pairs >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    q = (low & 15).reshape(-1, 256) | ((high & 3) << 4).reshape(-1, 256)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32) * _halves(blocks[:, 208:])
    weights = (q.astype(np.float32) - 32).reshape(-1, 16, 16) * scales[:, :, None]
    return Plain(mx.array(weights.astype(np.float16).reshape(shape)))


def _nibbles(packed: _Bytes) -> _Bytes:
    """GGML packs element i with element i + 16 in a byte; MLX packs neighbours."""
    elements: _Bytes = np.concatenate([packed & 15, packed >> 4], axis=1)
    high: _Bytes = elements[:, 1::2] << np.uint8(4)
    return elements[:, 0::2] | high


def _quantized(
    packed: _Bytes,
    scales: npt.NDArray[np.float16],
    biases: npt.NDArray[np.float16],
    bits: int,
    shape: tuple[int, ...],
) -> Quantized:
    rows = shape[:-1]
    return Quantized(
        mx.array(np.ascontiguousarray(packed).view("<u4").reshape(*rows, -1)),
        mx.array(scales.reshape(*rows, -1)),
        mx.array(_finite(biases).reshape(*rows, -1)),
        bits,
    )


def _times(scales: npt.NDArray[np.float16], factor: int) -> npt.NDArray[np.float16]:
    """Exact, the factor being a power of two, unless it overflows, which `_finite` finds."""
    with np.errstate(over="ignore"):
        return scales * np.float16(factor)


def _halves(data: _Bytes) -> npt.NDArray[np.float16]:
    return _finite(np.ascontiguousarray(data).view("<f2"))


def _finite(array: npt.NDArray[F]) -> npt.NDArray[F]:
    if not np.isfinite(array).all():
        raise ValueError("an element is not a finite number")
    return array


_CONVERTERS: Mapping[str, Callable[[_Bytes, tuple[int, ...]], Plain | Quantized]] = {
    "F32": _float32,
    "F16": _float16,
    "BF16": _bfloat16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
    "Q6_K": _q6_k,
}
