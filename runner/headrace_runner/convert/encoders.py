"""Takes over the directory of an embedding model, in the layout of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace.errors import InvalidRequest
from headrace_runner.convert.directory import copy, no_weights
from headrace_runner.convert.facts import read_facts
from headrace_runner.convert.progress import Meter, Report
from headrace_runner.models.encoders.architectures import (
    BATCH_TOKENS,
    stored_names,
    working_bytes,
)
from headrace_runner.models.encoders.encoder import load_encoder
from headrace_runner.models.encoders.inputs import TextEncoder
from headrace_runner.models.encoders.layout import files_of, read_traits
from headrace_runner.models.safetensors import read_tensors
from headrace_runner.models.tokenizer import Tokenizer

_FILES = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "README.md",
    "LICENSE*",
)
_QUICK_BYTES = 512 << 20
"""Weights up to which a model is tried out before it may be published."""


def import_encoder(source: Path, output: Path, report: Report) -> dict[str, Any]:
    """Copy the model in `source` to `output` and return its facts.

    Raises UnsupportedModel for what a runner cannot compute, ModelCorrupt for damaged files, and
    InvalidRequest for a directory without a config.json.
    """
    if not (source / "config.json").is_file():
        raise InvalidRequest(
            f"{source.name} has a modules.json and no config.json beside it; give the directory of "
            "the whole model"
        )
    traits = read_traits(source)
    weights = sorted(source.glob("model*.safetensors"))
    if not weights:
        raise no_weights(source)
    stored_names(read_tensors(source), traits.shape)  # Before gigabytes are copied.
    files = {path for pattern in _FILES for path in source.glob(pattern)} | set(files_of(source))
    meter = Meter(report, "store", sum(path.stat().st_size for path in files))
    for path in sorted(files):
        target = output / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy(path, target, meter)
    return encoder_facts(output)


def encoder_facts(directory: Path) -> dict[str, Any]:
    """What a manifest says of an embedding model. Raises as `import_encoder`."""
    traits = read_traits(directory)
    rows = max(1, BATCH_TOKENS // traits.context_length)
    stored = read_tensors(directory)
    # Of those that are loaded: heads for other tasks are not.
    used = [stored[name] for name in stored_names(stored, traits.shape).values()]
    return read_facts(directory) | {
        "kind": "embedding",
        "parameters": sum(tensor.elements for tensor in used),
        "tensor_bytes": sum(tensor.nbytes for tensor in used),
        "context_length": traits.context_length,
        "kv_heads": 0,
        "head_dim": 0,
        "chat_template": None,
        "embedding": {
            "dimensions": traits.dimensions,
            "working_bytes": working_bytes(traits.shape, rows, traits.context_length),
        },
    }


def check_encoder(directory: Path, facts: dict[str, Any]) -> None:
    """Look at the copy as a runner will, and embed a word with it where that is quick.

    Raises ModelCorrupt or UnsupportedModel where that cannot be done.
    """
    traits = read_traits(directory)
    texts = TextEncoder(Tokenizer.load(directory), lower_case=traits.lower_case)
    if facts["tensor_bytes"] <= _QUICK_BYTES:
        load_encoder(directory, "stored").embed([texts.encode("word")])
