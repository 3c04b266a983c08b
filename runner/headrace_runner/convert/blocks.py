"""GGML's tensor blocks as MLX arrays. Quantised blocks stay quantised, to the bit where possible.

Q4_0, Q4_1 and Q8_0 can be taken over as MLX affine triplets (weight, scales, biases) of group
size 32; every type can be expanded, and quantised MLX's way. Pure: takes bytes, never touches a
file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import gguf
import mlx.core as mx
import numpy as np
import numpy.typing as npt

from headrace_runner.convert.gguf import TensorType

EXACT_GROUP = 32
_CHUNK_ELEMENTS = 16 << 20
"""Elements that are expanded at once: 64 MB of float32."""
F = TypeVar("F", bound=np.floating)
_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]


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


def taken_over(type_name: str, data: _Bytes, shape: tuple[int, ...]) -> Quantized:
    """The tensor whose stored bytes are `data` and whose row-major shape is `shape`, exactly.

    `type_name` is one of `EXACT_BITS`. Raises ValueError where a scale is infinite or not a
    number, which no trained model has: the file is damaged.
    """
    return _CONVERTERS[type_name](data, shape)


def expanded(kind: TensorType, data: _Bytes, shape: tuple[int, ...], dtype: mx.Dtype) -> Plain:
    """The tensor in floating point. Raises ValueError for elements that are not finite."""
    parts = [_cast(part, dtype) for part in _floats(kind, data, shape)]
    return Plain(_joined(parts).reshape(shape))


def requantized(
    kind: TensorType,
    data: _Bytes,
    shape: tuple[int, ...],
    dtype: mx.Dtype,
    bits: int,
    group_size: int,
) -> Quantized:
    """The tensor in MLX's own quantisation, with scales and biases of `dtype`.

    Expands some rows at a time. Raises ValueError for elements that are not finite.
    """
    parts = []
    for floats in _floats(kind, data, shape):
        weight, scales, biases = mx.quantize(mx.array(floats), group_size=group_size, bits=bits)
        parts.append((weight, scales.astype(dtype), biases.astype(dtype)))
        mx.eval(*parts[-1])
    joined = [_joined(list(column)) for column in zip(*parts, strict=True)]
    weight, scales, biases = (array.reshape(*shape[:-1], -1) for array in joined)
    return Quantized(weight, scales, biases, bits)


def _floats(kind: TensorType, data: _Bytes, shape: tuple[int, ...]) -> Iterator[_Floats]:
    """The rows of a tensor as float32, some at a time."""
    columns = shape[-1]
    rows = data.reshape(-1, columns // kind.block_size * kind.block_bytes)
    step = max(1, _CHUNK_ELEMENTS // columns)
    for start in range(0, len(rows), step):
        # Scales that overflow are found in the result.
        with np.errstate(all="ignore"):
            part = gguf.dequantize(rows[start : start + step], _GGML[kind.name])
        yield _finite(np.ascontiguousarray(part, dtype=np.float32).reshape(-1, columns))


def _cast(floats: _Floats, dtype: mx.Dtype) -> mx.array:
    array = mx.array(floats).astype(dtype)
    if dtype == mx.float16 and not mx.isfinite(array).all():
        raise ValueError("an element is too large for float16")
    return array


def _joined(parts: list[mx.array]) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


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


_GGML: Mapping[str, gguf.GGMLQuantizationType] = {
    kind.name: kind for kind in gguf.GGMLQuantizationType
}
_CONVERTERS: Mapping[str, Callable[[_Bytes, tuple[int, ...]], Quantized]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
}
EXACT_BITS: Mapping[str, int] = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
"""The types that MLX can hold as they are, with their bits."""
