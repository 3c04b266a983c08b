"""A GGUF file written anew with something changed, as a wrong converter would have written it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np


def rewrite(
    source: Path,
    target: Path,
    *,
    value: Callable[[str, Any], Any] = lambda key, value: value,
    name: Callable[[str], str] = lambda name: name,
    data: Callable[[str, Any], Any] = lambda name, data: data,
    more: Mapping[str, int] = MappingProxyType({}),
) -> Path:
    """Write `source` to `target` with every value, tensor name and tensor passed through.

    `more` are numbers that it may lack.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        of = field.types[1] if kind is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, value(key, field.contents()), kind, sub_type=of)
    for key, number in more.items():
        if key not in reader.fields:
            writer.add_uint32(key, number)
    for tensor in reader.tensors:
        stored = data(tensor.name, tensor.data)
        writer.add_tensor(name(tensor.name), stored, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def reordered(name: str, data: Any, heads: int, kv_heads: int) -> Any:
    """Rows of q and k as Hugging Face has them, where llama.cpp would have rotated them."""
    count = heads if ".attn_q." in name else kv_heads if ".attn_k." in name else 0
    if not count:
        return data
    pairs = data.reshape(count, -1, 2, data.shape[-1]).swapaxes(1, 2)
    return np.ascontiguousarray(pairs).reshape(data.shape)


def exchanged(name: str, one: int, other: int) -> str:
    """The name of a tensor where two layers stand in each other's place."""
    head, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    places = {str(one): other, str(other): one}
    return f"{head}.{places[layer]}.{rest}" if head == "blk" and layer in places else name
