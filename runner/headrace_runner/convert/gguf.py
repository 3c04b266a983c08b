"""Reads the header of a GGUF file: metadata, and where each tensor lies.

Every count, length and offset is checked against the size of the file before it is used, so a
damaged file gives ModelCorrupt and never a crash, a hang or a huge allocation. Tensor data is read
one tensor at a time; what its blocks mean is the business of `blocks`.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from headrace.errors import UnsupportedModel
from headrace_runner.models.safetensors import damaged

Value: TypeAlias = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]
T = TypeVar("T")

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    code: struct.Struct(f"<{fmt}")
    for code, fmt in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_MAX_DIMS = 4
_NAMES = {kind.value: kind.name for kind in GGMLQuantizationType}


@dataclass(frozen=True)
class TensorType:
    """How a tensor is stored: `block_bytes` bytes hold `block_size` elements of a row."""

    name: str
    block_size: int
    block_bytes: int


# All that the `gguf` package can expand; the sizes come from it, so that the two cannot differ.
_READ = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
)
TENSOR_TYPES: Mapping[int, TensorType] = {
    kind.value: TensorType(kind.name, *GGML_QUANT_SIZES[kind])
    for kind in GGMLQuantizationType
    if kind.name in _READ
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: `shape` in row-major order (rows first), `offset` from the file's beginning."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements // self.type.block_size * self.type.block_bytes


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file whose tensors all lie within the file."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]

    def read(self, tensor: TensorInfo) -> npt.NDArray[np.uint8]:
        """The raw bytes of `tensor`. Raises ModelCorrupt where the file ends before it does."""
        with self.path.open("rb") as file:
            data = np.fromfile(file, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)
        if data.size != tensor.nbytes:
            raise damaged(self.path, f"it ends inside tensor {tensor.name!r}")
        return data

    def text(self, key: str) -> str | None:
        """The string at `key`, None where absent. Raises ModelCorrupt if it is not a string."""
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise damaged(self.path, f"{key} is not a string")
        return value

    def number(self, key: str) -> int | float | None:
        """The number at `key`, None where absent. Raises ModelCorrupt if it is not a number."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise damaged(self.path, f"{key} is not a number")
        return value

    def integer(self, key: str) -> int | None:
        """The integer at `key`, None where absent. Raises ModelCorrupt if it is not one."""
        value = self.number(key)
        if value is not None and not isinstance(value, int):
            raise damaged(self.path, f"{key} is not an integer")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """The boolean at `key`, or `default`. Raises ModelCorrupt if it is not a boolean."""
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise damaged(self.path, f"{key} is not a boolean")
        return value

    def strings(self, key: str) -> list[str]:
        """The list of strings at `key`, empty where absent. Raises ModelCorrupt otherwise."""
        value = self.metadata.get(key, [])
        if not isinstance(value, list):
            raise damaged(self.path, f"{key} is not a list")
        strings = [item for item in value if isinstance(item, str)]
        if len(strings) != len(value):
            raise damaged(self.path, f"{key} is not a list of strings")
        return strings

    def numbers(self, key: str) -> list[int | float]:
        """The list of numbers at `key`, empty where absent. Raises ModelCorrupt otherwise."""
        value = self.metadata.get(key, [])
        if not isinstance(value, list):
            raise damaged(self.path, f"{key} is not a list")
        numbers = [item for item in value if isinstance(item, int | float)]
        if len(numbers) != len(value):
            raise damaged(self.path, f"{key} is not a list of numbers")
        return numbers


def is_gguf(path: Path) -> bool:
    """Whether the file at `path` begins as a GGUF file does, or is named like one."""
    if path.suffix == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_gguf(path: Path) -> GgufFile:
    """Read the header of the file at `path`.

    Raises:
        ModelCorrupt: the file is truncated or its header makes no sense.
        UnsupportedModel: a version or a tensor type that Headrace does not read.
    """
    with path.open("rb") as file:
        return _Reader(path, file).read()


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._size = path.stat().st_size

    def read(self) -> GgufFile:
        if self._take(4) != _MAGIC:
            raise damaged(self._path, "it does not begin with GGUF")
        version = self._uint32()
        if version not in _VERSIONS:
            raise UnsupportedModel(
                f"{self._path.name} is GGUF version {version}; only 2 and 3 in little endian are"
                " read, so convert it again with a current llama.cpp"
            )
        tensor_count, value_count = self._uint64(), self._uint64()
        metadata = self._mapping(value_count, self._value)
        tensors = self._mapping(tensor_count, self._tensor_info)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise damaged(self._path, "general.alignment is not a positive integer")
        start = math.ceil(self._file.tell() / alignment) * alignment
        return GgufFile(
            self._path,
            metadata,
            {name: self._located(name, *info, start) for name, info in tensors.items()},
        )

    def _mapping(self, count: int, read_value: Callable[[], T]) -> dict[str, T]:
        found: dict[str, T] = {}
        for _ in range(count):  # A false count runs into the end of the file.
            key = self._string()
            if key in found:
                raise damaged(self._path, f"{key!r} occurs twice")
            found[key] = read_value()
        return found

    def _value(self) -> Value:
        kind = self._uint32()
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalars(kind, 1)[0]
        kind, count = self._uint32(), self._uint64()
        if kind == _STRING:
            self._expect(count * 8)
            return [self._string() for _ in range(count)]
        return self._scalars(kind, count)

    def _scalars(self, kind: int, count: int) -> list[bool] | list[int] | list[float]:
        scalar = _SCALARS.get(kind)
        if scalar is None:
            raise damaged(self._path, f"a value has the unknown type {kind}")
        data = self._take(count * scalar.size)
        return [value for (value,) in scalar.iter_unpack(data)]

    def _tensor_info(self) -> tuple[tuple[int, ...], int, int]:
        dims = self._uint32()
        if not 1 <= dims <= _MAX_DIMS:
            raise damaged(self._path, f"a tensor has {dims} dimensions")
        shape = tuple(self._uint64() for _ in range(dims))
        return shape[::-1], self._uint32(), self._uint64()

    def _located(
        self, name: str, shape: tuple[int, ...], kind: int, offset: int, start: int
    ) -> TensorInfo:
        stored = TENSOR_TYPES.get(kind)
        if stored is None:
            known = _NAMES.get(kind, f"type {kind}")
            raise UnsupportedModel(
                f"{self._path.name}: tensor {name!r} is stored as {known}; take the model in one of"
                f" {', '.join(t.name for t in TENSOR_TYPES.values())}"
            )
        info = TensorInfo(name, shape, stored, start + offset)
        if min(shape) < 1 or shape[-1] % stored.block_size:
            raise damaged(self._path, f"tensor {name!r} has the impossible shape {shape}")
        if info.offset + info.nbytes > self._size:
            raise damaged(self._path, f"it is truncated: tensor {name!r} ends beyond its end")
        return info

    def _string(self) -> str:
        try:
            return self._take(self._uint64()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise damaged(self._path, "a string is not UTF-8") from error

    def _uint32(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def _uint64(self) -> int:
        return int.from_bytes(self._take(8), "little")

    def _take(self, count: int) -> bytes:
        self._expect(count)
        return self._file.read(count)

    def _expect(self, count: int) -> None:
        if self._file.tell() + count > self._size:
            raise damaged(self._path, "it is truncated inside its header")
