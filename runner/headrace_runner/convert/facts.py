"""What a manifest says about a model: read from a finished model directory, weights unread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace_runner.models.files import read_json, read_text
from headrace_runner.models.safetensors import StoredTensor, read_tensors

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def read_facts(
    directory: Path, quantization: str | None = None, license: str | None = None
) -> dict[str, Any]:
    """The facts of the model in `directory`, as the manifest's fields.

    `quantization` and `license` are what the source said, where its format says it.
    Raises ModelCorrupt for damaged files.
    """
    config = read_json(directory, "config.json")
    tensors = read_tensors(directory)
    inner = config.get("text_config")
    text: Mapping[str, Any] = inner if isinstance(inner, dict) else config
    heads = _integer(text, "num_attention_heads")
    hidden = _integer(text, "hidden_size")
    return {
        "kind": "text",
        "format": "mlx",
        "architecture": config["model_type"],
        "parameters": _parameters(tensors, config),
        "tensor_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "quantization": quantization or _quantization(tensors, config),
        "context_length": _integer(text, "max_position_embeddings"),
        "vocab_size": _integer(text, "vocab_size"),
        "layers": _integer(text, "num_hidden_layers"),
        "kv_heads": _integer(text, "num_key_value_heads") or heads,
        "head_dim": _integer(text, "head_dim") or (hidden // heads if heads else 0),
        "chat_template": _chat_template(directory),
        "license": license or _license(directory),
    }


def _integer(config: Mapping[str, Any], key: str) -> int:
    """0 stands for unknown."""
    value = config.get(key)
    return value if isinstance(value, int) else 0


def _parameters(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> int:
    """Weights as the architecture counts them: a packed word holds 32 / bits of them."""
    quantization = config.get("quantization") or {}
    count = 0
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        packed = f"{stem}.scales" in tensors
        if packed and part in ("scales", "biases"):
            continue
        elements = tensor.elements
        if packed and tensor.dtype == "U32":
            own = quantization.get(stem)
            bits = (own if isinstance(own, dict) else quantization).get("bits", 4)
            elements = elements * 32 // bits
        count += elements
    return count


def _quantization(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> str:
    quantization = config.get("quantization") or {}
    if "bits" in quantization:
        return f"{quantization['bits']}-bit g{quantization.get('group_size', 64)}"
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    dtype = max(sizes, key=lambda name: sizes[name], default="")
    return _DTYPES.get(dtype, dtype)


def _chat_template(directory: Path) -> str | None:
    template = read_text(directory, "chat_template.jinja")
    if template is None:
        found = read_json(directory, "tokenizer_config.json").get("chat_template")
        if isinstance(found, list):
            named = {item.get("name"): item for item in found if isinstance(item, dict)}
            found = named.get("default", {}).get("template")
        template = found if isinstance(found, str) else None
    if template is None:
        found = read_json(directory, "chat_template.json").get("chat_template")
        template = found if isinstance(found, str) else None
    return template


def _license(directory: Path) -> str | None:
    """The model card's "license:", in the block between the first two lines of three dashes."""
    card = read_text(directory, "README.md") or ""
    if card.startswith("---\n"):
        for line in card.split("\n---", 1)[0].splitlines():
            key, _, value = line.partition(":")
            if key == "license" and value.strip():
                return value.strip().strip("\"'")
    return None


def dumps(value: Mapping[str, Any]) -> str:
    """JSON as it lies in a model directory."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
