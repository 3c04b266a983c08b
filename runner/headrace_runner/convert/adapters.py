"""Takes over an adapter (LoRA) in the form of mlx-lm or of PEFT, and sees that it fits its base.

What a runner cannot add to one row and not to the next is refused here, and not at the first
request: DoRA, whole weights, embeddings, heads and experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from headrace.errors import FieldViolation, InvalidRequest, ModelCorrupt, UnsupportedModel
from headrace_runner.convert.directory import copy
from headrace_runner.convert.facts import NO_FACTS_OF_TEXT, dumps
from headrace_runner.convert.peft import PEFT_WEIGHTS, read_peft
from headrace_runner.convert.progress import Meter, Report
from headrace_runner.models.adapters import (
    CONFIG,
    WEIGHTS,
    Place,
    Shapes,
    places_in,
    read_scale,
    read_shapes,
)
from headrace_runner.models.files import license_of, read_json
from headrace_runner.models.insides import load_lazily
from headrace_runner.models.lora import Adaptable, Mixture, Pair
from headrace_runner.models.safetensors import damaged, main_type, read_header
from headrace_runner.models.tensors import load_tensors

_KEPT = ("README.md", "LICENSE*")
_TYPES = ("F32", "F16", "BF16")
_FUSED = "fuse it into its base (`mlx_lm.fuse`) and import the model that this gives"


def is_adapter(source: Path, *, asked: bool) -> bool:
    """Whether a directory holds an adapter, and no model unless the adapter is `asked` for."""
    return (source / CONFIG).is_file() and (asked or not (source / "config.json").is_file())


def import_adapter(source: Path, base: Path, output: Path, report: Report) -> dict[str, Any]:
    """Bring the adapter in `source` into `output`, in mlx-lm's form, and return its facts.

    `base`: the directory of the model that it belongs to.

    Raises:
        InvalidRequest: it does not fit the base.
        UnsupportedModel: it changes what cannot be changed for single requests.
        ModelCorrupt: a file is damaged.
    """
    model, base_config = load_lazily(base)
    places = places_in(model)
    if (source / PEFT_WEIGHTS).is_file() and not (source / WEIGHTS).is_file():
        tensors, scale = read_peft(source, places)
    else:
        tensors, scale = _read_mlx(source)
    weights = output / WEIGHTS
    meter = Meter(report, "store", sum(tensor.nbytes for tensor in tensors.values()))
    _check_places(tensors, places, {path for path, _ in model.named_modules()}, source)
    for name, tensor in tensors.items():
        if not mx.isfinite(tensor).all().item():
            raise damaged(weights, f"the tensor {name!r} has values that are no numbers")
        meter.advance(tensor.nbytes)
    mx.save_safetensors(str(weights), dict(sorted(tensors.items())), {"format": "mlx"})
    found = _checked(read_shapes(output), places)
    _try(model, found, tensors)
    _write_config(output, found, places, len(model.layers), scale)
    kept = sorted({path for pattern in _KEPT for path in source.glob(pattern)})
    meter = Meter(report, "store", sum(path.stat().st_size for path in kept))
    for path in kept:
        copy(path, output / path.name, meter)
    return adapter_facts(output, found, places, str(base_config["model_type"]))


def adapter_facts(
    directory: Path, shapes: Mapping[str, Shapes], places: Mapping[str, Place], architecture: str
) -> dict[str, Any]:
    """What a manifest says of an adapter."""
    stored = [tensor for pair in shapes.values() for tensor in (pair.a, pair.b)]
    return {
        "kind": "adapter",
        "format": "mlx",
        "architecture": architecture,
        **NO_FACTS_OF_TEXT,
        "parameters": sum(tensor.elements for tensor in stored),
        "tensor_bytes": sum(tensor.nbytes for tensor in stored),
        "quantization": main_type(stored),
        "license": license_of(directory),
        "adapter": {
            "rank": max(pair.rank for pair in shapes.values()),
            "layers": len({places[path].layer for path in shapes}),
            "modules": sorted({places[path].key for path in shapes}),
        },
    }


def _read_mlx(source: Path) -> tuple[dict[str, mx.array], float]:
    config = read_json(source, CONFIG)
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise UnsupportedModel(
            f"{CONFIG} says fine_tune_type {kind!r}; what is no plain LoRA cannot be applied to "
            f"single requests: {_FUSED}"
        )
    path = source / WEIGHTS
    if not path.is_file():
        if any(source.glob("*.bin")):
            raise UnsupportedModel(
                "the weights are pickles, which are never loaded; have them saved as safetensors"
            )
        raise ModelCorrupt(f"there is neither {WEIGHTS} nor {PEFT_WEIGHTS}", file=WEIGHTS)
    for name, tensor in read_header(path).items():
        if name.endswith(".m"):
            raise UnsupportedModel(
                f"{WEIGHTS} has the magnitude {name!r}: DoRA cannot be applied to single "
                f"requests; {_FUSED}"
            )
        if tensor.dtype not in _TYPES:
            raise damaged(path, f"the tensor {name!r} is of type {tensor.dtype}")
    return load_tensors(path), read_scale(source)


def _check_places(
    tensors: Mapping[str, mx.array], places: Mapping[str, Place], modules: set[str], source: Path
) -> None:
    """Raises for a tensor that changes no linear layer of the base."""
    file = WEIGHTS if (source / WEIGHTS).is_file() else PEFT_WEIGHTS
    for name in tensors:
        layer, _, part = name.rpartition(".")
        if layer in places and part in ("lora_a", "lora_b"):
            continue
        if layer in modules:
            raise UnsupportedModel(
                f"{file} changes {layer!r} by {name!r}; only linear layers inside the model's "
                f"layers can be changed for single requests: {_FUSED}"
            )
        raise _misfit(f"{name!r} of {file} has no place in it")
    if not tensors:
        raise damaged(source / file, "it holds no tensors")


def _checked(shapes: dict[str, Shapes], places: Mapping[str, Place]) -> dict[str, Shapes]:
    """Raises InvalidRequest for matrices of another shape than their layers."""
    for path, pair in shapes.items():
        place = places[path]
        if not pair.fit(place) or not pair.rank:
            raise _misfit(
                f"{path!r} takes {place.inputs} numbers and gives {place.outputs} there, and the "
                f"adapter's matrices are {_by(pair.a.shape)} and {_by(pair.b.shape)}"
            )
    return shapes


def _try(model: Any, shapes: Mapping[str, Shapes], tensors: Mapping[str, mx.array]) -> None:
    """Raises UnsupportedModel for a layer that does not tell a pass's inputs apart."""
    pairs = {path: Pair(tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"]) for path in shapes}
    try:
        Adaptable(model, Mixture()).add("this", pairs)
    except NotImplementedError as error:
        raise UnsupportedModel(
            f"the adapter cannot be applied to single requests: {error}; {_FUSED}"
        ) from error


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _misfit(what: str) -> InvalidRequest:
    rule = f"the adapter does not fit this model: {what}; name the model that it was trained over"
    return InvalidRequest(violations=[FieldViolation("base", rule)])


def _write_config(
    output: Path,
    shapes: Mapping[str, Shapes],
    places: Mapping[str, Place],
    layers: int,
    scale: float,
) -> None:
    """So that mlx-lm loads the adapter, too."""
    config = {
        "fine_tune_type": "lora",
        "num_layers": layers - min(places[path].layer for path in shapes),
        "lora_parameters": {
            "rank": max(pair.rank for pair in shapes.values()),
            "scale": scale,
            "dropout": 0.0,
            "keys": sorted({places[path].key for path in shapes}),
        },
    }
    (output / CONFIG).write_text(dumps(config), encoding="utf-8")
