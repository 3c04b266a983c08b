"""Adapters (LoRA) of language models: how they are stored, and the layers that they may change.

An adapter lies in a directory of its own, in mlx-lm's form: `adapters.safetensors` with two
matrices for each layer that it changes, A [inputs, rank] and B [rank, outputs], and
`adapter_config.json` with the scale. It adds `scale * (x @ A) @ B` to what a layer makes of x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedLinear

from headrace.errors import ModelCorrupt
from headrace_runner.models.cpu import PackedLinear
from headrace_runner.models.files import read_json
from headrace_runner.models.safetensors import StoredTensor, damaged, read_header

WEIGHTS = "adapters.safetensors"
CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Place:
    """A linear layer of a model that an adapter may change."""

    path: str
    """In the model, such as "model.layers.3.self_attn.q_proj"."""
    layer: int
    key: str
    """In its layer, such as "self_attn.q_proj"."""
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Shapes:
    """The two matrices of one layer, as they are stored."""

    a: StoredTensor
    b: StoredTensor

    @property
    def rank(self) -> int:
        return self.a.shape[1]

    def fit(self, place: Place) -> bool:
        """Whether they change this very layer."""
        return (self.a.shape, self.b.shape) == (
            (place.inputs, self.rank),
            (self.rank, place.outputs),
        )


def places_in(model: Any) -> dict[str, Place]:
    """Every linear layer inside the layers of a model, by its path.

    Others cannot be changed for one row and not for another: embeddings and heads, which have ways
    of their own, and experts, which see no rows.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    known = set(paths.values())
    found = {}
    for layer, block in enumerate(model.layers):
        for key, module in block.named_modules():
            path = paths.get(id(module), "")
            sizes = _sizes(module)
            if sizes is not None and path.rpartition(".")[0] in known:
                found[path] = Place(path, layer, key, *sizes)
    return found


def _sizes(module: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer; None for anything else, a kind of its own included."""
    if type(module) is PackedLinear:
        return module.sizes
    if type(module) is Linear:
        return int(module.weight.shape[1]), int(module.weight.shape[0])
    if type(module) is QuantizedLinear:
        inputs = int(module.weight.shape[1]) * 32 // int(module.bits)
        return inputs, int(module.weight.shape[0])
    return None


def read_shapes(directory: Path) -> dict[str, Shapes]:
    """The matrices of a stored adapter, by the path of their layer; reads no data.

    Raises ModelCorrupt for a damaged file, and one that holds anything else.
    """
    path = directory / WEIGHTS
    if not path.is_file():
        raise ModelCorrupt(f"the adapter has no {WEIGHTS}", file=WEIGHTS)
    return dict(_pairs(read_header(path), path))


def _pairs(tensors: Mapping[str, StoredTensor], path: Path) -> Iterator[tuple[str, Shapes]]:
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in tensors):
        for name in (f"{layer}.lora_a", f"{layer}.lora_b"):
            if name not in tensors:
                raise damaged(path, f"it has no tensor {name!r}")
            if len(tensors[name].shape) != 2:
                raise damaged(path, f"the tensor {name!r} is no matrix")
        yield layer, Shapes(tensors[f"{layer}.lora_a"], tensors[f"{layer}.lora_b"])


def read_scale(directory: Path) -> float:
    """By what a stored adapter's product is multiplied. Raises ModelCorrupt."""
    parameters = read_json(directory, CONFIG).get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ModelCorrupt(f"{CONFIG} says no lora_parameters.scale that is a number", file=CONFIG)
    return float(scale)
