"""Reads an adapter in the form of Hugging Face PEFT into mlx-lm's names and orientation.

PEFT keeps A as [rank, inputs] and B as [outputs, rank], and multiplies by `lora_alpha / r`, or by
`lora_alpha / sqrt(r)` with `use_rslora`; layers may have a rank and an alpha of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.models.adapters import CONFIG, Place
from headrace_runner.models.files import read_json
from headrace_runner.models.safetensors import damaged, read_header
from headrace_runner.models.tensors import load_tensors

PEFT_WEIGHTS = "adapter_model.safetensors"

_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<path>.+)\.lora_(?P<part>[AB])\.weight")
_TYPES = ("F32", "F16", "BF16")
_PLAIN = re.compile(r"[\w.]+")
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA",
    "fan_in_fan_out": "layers that keep their weights the other way round",
    "lora_bias": "a bias in its matrices",
    "layer_replication": "layers that are there several times",
    "alora_invocation_tokens": "only what follows certain tokens",
    "target_parameters": "single tensors, such as those of experts",
    "trainable_token_indices": "single tokens' embeddings",
}
"""Options that make an adapter another thing than two matrices a layer, and what it then has."""
_OF_TEXT = frozenset({"model", "language_model", "text_model"})
"""What the paths of a text model's layers begin with, in classes that hold others beside it."""
_OF_THE_BASE = ("pissa", "olora", "loftq", "corda")
"""Ways to begin a training by which the base's own weights were changed as well."""


def read_peft(source: Path, places: Mapping[str, Place]) -> tuple[dict[str, mx.array], float]:
    """The tensors of an adapter under mlx-lm's names, and the scale of all of them.

    Names that no place has come back as they are. Raises UnsupportedModel and ModelCorrupt.
    """
    config = read_json(source, CONFIG)
    _refuse(config)
    file = source / PEFT_WEIGHTS
    header = read_header(file)
    for name, kept in header.items():
        if "lora_magnitude_vector" in name:
            raise _unsupported(f"{PEFT_WEIGHTS} has {name!r}", "DoRA")
        if not _TENSOR.fullmatch(name):
            raise _unsupported(f"{PEFT_WEIGHTS} has {name!r}", "whole weights, or embeddings")
        if kept.dtype not in _TYPES:
            raise damaged(file, f"the tensor {name!r} is of type {kept.dtype}")
        if len(kept.shape) != 2:
            raise damaged(file, f"the tensor {name!r} is no matrix")
    stored = load_tensors(file)
    scale = _scale(config, _positive(config, "r"), _positive(config, "lora_alpha"))
    found = {}
    for name, tensor in stored.items():
        match = _TENSOR.fullmatch(name)
        assert match is not None
        theirs, part = match["path"], match["part"]
        rank = tensor.shape[0 if part == "A" else 1]
        wanted = _own(config, "rank_pattern", theirs, "r")
        if rank != wanted:
            raise ModelCorrupt(
                f"{CONFIG} says rank {wanted:g} for {theirs!r}, and {name!r} has {rank}",
                file=CONFIG,
            )
        turned = mx.contiguous(tensor.T)
        if part == "B":
            # All share one scale in mlx-lm's form: what a layer has beside it goes into B.
            own = _scale(config, wanted, _own(config, "alpha_pattern", theirs, "lora_alpha"))
            if own != scale:
                turned = (turned.astype(mx.float32) * (own / scale)).astype(tensor.dtype)
        ours = f"{_place(theirs, places)}.lora_{part.lower()}"
        if ours in found:
            raise damaged(file, f"{name!r} and another tensor belong to the same layer")
        found[ours] = turned
    return found, scale


def _refuse(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise _unsupported(f"{CONFIG} says peft_type {kind!r}", "no LoRA")
    for key, what in _REFUSED.items():
        if config.get(key):
            raise _unsupported(f"{CONFIG} says {key}", what)
    if config.get("bias", "none") != "none":
        raise _unsupported(f"{CONFIG} says bias {config['bias']!r}", "biases of the base")
    if config.get("modules_to_save"):
        raise _unsupported(f"{CONFIG} says modules_to_save", "whole weights")
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_OF_THE_BASE):
        raise UnsupportedModel(
            f"{CONFIG} says init_lora_weights {begun!r}: the training has changed the base itself; "
            "convert the adapter to a plain LoRA with PEFT, which is one of save_pretrained's "
            "options"
        )


def _unsupported(said: str, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{said}: an adapter with {what} cannot be applied to single requests; merge it into its "
        "base (merge_and_unload of PEFT) and import the model that this gives"
    )


def _positive(config: Mapping[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelCorrupt(f"{CONFIG} says no {key!r} that is a positive number", file=CONFIG)
    return value


def _own(config: Mapping[str, Any], patterns: str, path: str, key: str) -> float:
    """The value of `key` for a layer: its own, where the table `patterns` names it by the end of
    its path."""
    table = config.get(patterns) or {}
    if not isinstance(table, dict):
        raise ModelCorrupt(f"{CONFIG}: {patterns!r} is no table", file=CONFIG)
    for name in table:
        if not _PLAIN.fullmatch(name):
            raise UnsupportedModel(
                f"{CONFIG}: {patterns!r} has the expression {name!r}; write the names of layers"
            )
        if f".{path}".endswith(f".{name}"):
            return _positive(table, name)
    return _positive(config, key)


def _scale(config: Mapping[str, Any], rank: float, alpha: float) -> float:
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _place(theirs: str, places: Mapping[str, Place]) -> str:
    """The path in mlx-lm's class: the same, or the only one that is alike from the layers on, where
    what stands before these leads to a text model."""
    before, found, tail = theirs.partition(".layers.")
    if theirs in places or not found or not _OF_TEXT.issuperset(before.split(".")):
        return theirs
    alike = [path for path in places if path.endswith(f".layers.{tail}")]
    return alike[0] if len(alike) == 1 else theirs
