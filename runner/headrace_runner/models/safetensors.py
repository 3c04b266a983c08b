"""Reads the headers of safetensors files: a model's tensors, and whether files are whole.

Never reads a tensor's data. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import ModelCorrupt

INDEX = "model.safetensors.index.json"
_TYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a safetensors header describes it; `dtype` in its spelling ("F16", "U32")."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of the safetensors file at `path`.

    Raises ModelCorrupt where the header makes no sense or the file is not as long as it says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise damaged(path, "it is truncated inside its header")
        text = file.read(length)
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        tensors = {name: _tensor(value) for name, value in header.items()}
        ends = [int(value["data_offsets"][1]) for value in header.values()]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise damaged(path, "its header makes no sense") from error
    if 8 + length + max(ends, default=0) != size:
        raise damaged(path, "it is truncated, or longer than its header says")
    return tensors


def read_tensors(directory: Path) -> dict[str, StoredTensor]:
    """All tensors of a model directory.

    Raises ModelCorrupt for a damaged file and for a shard that the index names and is not there.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        tensors |= read_header(path)
    index = directory / INDEX
    if index.exists():
        for name in _weight_map(index):
            if name not in tensors:
                raise damaged(index, f"it names the tensor {name!r}, which is in no file")
    return tensors


def parameters_in(tensors: Mapping[str, StoredTensor], bits_of: Callable[[str], int]) -> int:
    """Weights as the architecture counts them: a packed word holds 32 / bits of them.

    `bits_of` says so of a packed layer, by its name.
    """
    count = 0
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        packed = f"{layer}.scales" in tensors
        if packed and part in ("scales", "biases"):
            continue
        whole = packed and tensor.dtype == "U32"
        count += tensor.elements * 32 // bits_of(layer) if whole else tensor.elements
    return count


def main_type(tensors: Iterable[StoredTensor]) -> str:
    """The type of most of the bytes, by MLX's name, such as "float16"; "" for no tensors."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    dtype = max(sizes, key=lambda name: sizes[name], default="")
    return _TYPES.get(dtype, dtype)


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(index, "it is not an index of tensors") from error
    if not isinstance(weight_map, dict):
        raise damaged(index, "it is not an index of tensors")
    return weight_map


def _tensor(value: Mapping[str, Any]) -> StoredTensor:
    start, end = value["data_offsets"]
    return StoredTensor(str(value["dtype"]), tuple(int(n) for n in value["shape"]), end - start)


def damaged(path: Path, what: str) -> ModelCorrupt:
    """The error for the file at `path`, of which `what` is wrong: "it ends early"."""
    return ModelCorrupt(f"{path.name} is damaged: {what}", file=path.name)
