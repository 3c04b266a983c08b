"""Adapters for the tests: random, strong enough to change every answer, the same every time.

Each can be written in mlx-lm's form and in PEFT's, with the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from headrace_runner.models.adapters import Place, places_in
from headrace_runner.models.insides import load_lazily

ATTENTION = ("self_attn.q_proj", "self_attn.v_proj")
EVERYTHING = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


@dataclass(frozen=True)
class Made:
    """An adapter's numbers."""

    tensors: dict[str, mx.array]
    """By mlx-lm's names."""
    rank: int
    scale: float
    layers: int
    """The last so many of the model have it."""
    keys: tuple[str, ...]


def make(
    model: Any,
    *,
    seed: int,
    rank: int = 4,
    scale: float = 2.0,
    layers: int | None = None,
    keys: Sequence[str] = ATTENTION,
    strength: float = 0.5,
) -> Made:
    """An adapter of a model. `strength`: about how large what it adds is, beside its input."""
    last = len(model.layers) if layers is None else layers
    tensors = {}
    numbers = iter(mx.random.split(mx.random.key(seed), 2 * len(places_in(model))))
    for place in _chosen(model, last, keys):
        down = mx.random.normal((place.inputs, rank), key=next(numbers)) * place.inputs**-0.5
        up = mx.random.normal((rank, place.outputs), key=next(numbers)) * rank**-0.5
        tensors[f"{place.path}.lora_a"] = down
        tensors[f"{place.path}.lora_b"] = up * (strength / scale)
    mx.eval(tensors)
    return Made(tensors, rank, scale, last, tuple(keys))


def _chosen(model: Any, last: int, keys: Sequence[str]) -> list[Place]:
    first = len(model.layers) - last
    return [p for p in places_in(model).values() if p.layer >= first and p.key in keys]


def write_mlx(directory: Path, made: Made, **config: Any) -> Path:
    """As mlx-lm's training writes it."""
    directory.mkdir(parents=True)
    mx.save_safetensors(str(directory / "adapters.safetensors"), made.tensors)
    parameters = {
        "rank": made.rank,
        "scale": made.scale,
        "dropout": 0.0,
        "keys": list(made.keys),
    }
    told = {"fine_tune_type": "lora", "num_layers": made.layers, "lora_parameters": parameters}
    (directory / "adapter_config.json").write_text(json.dumps(told | config))
    return directory


def write_peft(directory: Path, made: Made, **config: Any) -> Path:
    """As PEFT's `save_pretrained` writes it."""
    directory.mkdir(parents=True)
    tensors = {}
    for name, tensor in made.tensors.items():
        path, _, part = name.rpartition(".lora_")
        tensors[f"base_model.model.{path}.lora_{part.upper()}.weight"] = mx.contiguous(tensor.T)
    mx.save_safetensors(str(directory / "adapter_model.safetensors"), tensors, {"format": "pt"})
    told = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": made.rank,
        "lora_alpha": made.scale * made.rank,
        "target_modules": sorted({key.rpartition(".")[2] for key in made.keys}),
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(told | config))
    return directory


def of_directory(model_dir: Path, **options: Any) -> Made:
    """`make` for a model that lies in a directory."""
    return make(load_lazily(model_dir)[0], **options)


def with_adapter(model: Any, directory: Path) -> Any:
    """The model with the adapter put in by mlx-lm itself."""
    from mlx_lm.tuner.utils import load_adapters

    model.freeze()
    return load_adapters(model, str(directory))


def by_hand(model: Any, prompt: list[int], count: int) -> list[int]:
    """What mlx-lm's model writes greedily, each token by a pass over everything."""
    tokens = list(prompt)
    for _ in range(count):
        likeliest: Any = mx.argmax(model(mx.array([tokens]))[0, -1]).item()
        tokens.append(likeliest)
    return tokens[len(prompt) :]
