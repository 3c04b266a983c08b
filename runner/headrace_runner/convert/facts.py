"""What a manifest says about a model: read from a finished model directory, weights unread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace_runner.models.files import license_of, read_json, read_text
from headrace_runner.models.safetensors import StoredTensor, main_type, parameters_in, read_tensors

NO_FACTS_OF_TEXT: Mapping[str, Any] = {
    "context_length": 0,
    "vocab_size": 0,
    "layers": 0,
    "kv_heads": 0,
    "head_dim": 0,
    "chat_template": None,
}
"""Those that only a language model has."""


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
        "parameters": parameters_in(tensors, lambda layer: _bits(config, layer)),
        "tensor_bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "quantization": quantization or _quantization(tensors, config),
        "context_length": _integer(text, "max_position_embeddings"),
        "vocab_size": _integer(text, "vocab_size"),
        "layers": _integer(text, "num_hidden_layers"),
        "kv_heads": _integer(text, "num_key_value_heads") or heads,
        "head_dim": _integer(text, "head_dim") or (hidden // heads if heads else 0),
        "chat_template": _chat_template(directory),
        "license": license or license_of(directory),
    }


def _integer(config: Mapping[str, Any], key: str) -> int:
    """0 stands for unknown."""
    value = config.get(key)
    return value if isinstance(value, int) else 0


def _bits(config: Mapping[str, Any], layer: str) -> int:
    """Of the weights of a layer, which may have a setting of its own."""
    quantization = config.get("quantization") or {}
    own = quantization.get(layer)
    bits: int = (own if isinstance(own, dict) else quantization).get("bits", 4)
    return bits


def _quantization(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> str:
    quantization = config.get("quantization") or {}
    if "bits" in quantization:
        return f"{quantization['bits']}-bit g{quantization.get('group_size', 64)}"
    return main_type(tensors.values())


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


def dumps(value: Mapping[str, Any]) -> str:
    """JSON as it lies in a model directory."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
