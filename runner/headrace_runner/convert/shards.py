"""Writes tensors as safetensors files of bounded size. Never holds a whole model in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import mlx.core as mx

from headrace_runner.models.safetensors import INDEX

SHARD_BYTES = 2 << 30


def write_shards(
    directory: Path, tensors: Iterable[tuple[str, mx.array]], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write `tensors` as model-*.safetensors with their index, at most about a shard in memory."""
    parts: list[tuple[Path, list[str]]] = []
    total = 0
    for number, arrays in enumerate(_grouped(tensors, shard_bytes), start=1):
        part = directory / f"part-{number}.safetensors"
        mx.save_safetensors(str(part), arrays, metadata={"format": "mlx"})
        parts.append((part, list(arrays)))
        total += sum(array.nbytes for array in arrays.values())
    if len(parts) == 1:
        parts[0][0].rename(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, (part, names) in enumerate(parts, start=1):
        final = f"model-{number:05}-of-{len(parts):05}.safetensors"
        part.rename(directory / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _grouped(
    tensors: Iterable[tuple[str, mx.array]], shard_bytes: int
) -> Iterator[dict[str, mx.array]]:
    group: dict[str, mx.array] = {}
    size = 0
    for name, array in tensors:
        if group and size + array.nbytes > shard_bytes:
            yield group
            group, size = {}, 0
        mx.eval(array)
        group[name] = array
        size += array.nbytes
    yield group
