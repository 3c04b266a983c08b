"""Loads a model's weights with mlx-lm, in the type that is fastest here.

Runs on the engine's thread: MLX arrays belong to the thread that evaluates them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
from mlx.utils import tree_flatten

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.models import cpu
from headrace_runner.models.architectures import first_line, model_class_exists
from headrace_runner.models.device import claim_memory, on_cpu, read_weights
from headrace_runner.models.files import read_json
from headrace_runner.models.insides import dequantized, load_lazily
from headrace_runner.models.safetensors import read_tensors

_PREFILL_CHUNK = {False: 2048, True: 512}
"""Prompt tokens to compute at once at most, by whether on a CPU."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run."""

    model: Any
    weights: str
    """Type of the weights in memory, such as "float32" or "4-bit", and "int8" behind it where their
    products are of 8-bit integers."""
    weights_bytes: int
    prefill_chunk: int
    """Prompt tokens to compute at once at most."""
    on_cpu: bool
    """Whether a CPU is device and host in one."""
    memory_available: int
    """Bytes that are free for everything else."""


def load(
    model_dir: Path,
    dtype: Literal["float32", "int8", "stored"],
    on_progress: Callable[[float], None],
) -> LoadedModel:
    """Loads the model in `model_dir`.

    `dtype` "float32" expands quantised and half-precision weights, which is faster on a CPU than to
    leave them "stored". "int8" leaves what is quantised to the kernels (`models.cpu`), and expands
    what is in half precision. `on_progress` gets the fraction that is done.

    Raises ModelCorrupt naming the file, and UnsupportedModel.
    """
    config = read_json(model_dir, "config.json")
    if not config:
        raise ModelCorrupt(file="config.json")
    if not model_class_exists(config):
        architecture = str(config.get("model_type", ""))
        raise UnsupportedModel(
            f"mlx-lm does not know the architecture {architecture!r}", architecture=architecture
        )
    if not read_tensors(model_dir):
        raise ModelCorrupt("The model has no weights.", file="model.safetensors")
    try:
        model, config = load_lazily(model_dir)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        # The files are whole, so what mlx-lm rejects is that they do not fit each other.
        raise ModelCorrupt(
            f"the weights do not fit config.json: {first_line(error)}", file="config.json"
        ) from error
    if dtype == "float32":
        # First the scales: what is dequantised takes their type, and would lose bits in half.
        model.set_dtype(mx.float32)
        model = dequantized(model)
    elif dtype == "int8":
        # Before the type is set: the kernels read scales of any type.
        cpu.pack(model)
        model.set_dtype(mx.float32)
    here = on_cpu()
    if here and "quantization" in config:
        # MLX's quantised products on a CPU take many times longer with scales in half precision.
        model.set_dtype(mx.float32)
    weights_bytes = _evaluate(model, on_progress)
    return LoadedModel(
        model,
        _type_in_memory(config, dtype),
        weights_bytes,
        _PREFILL_CHUNK[here],
        here,
        claim_memory(),
    )


def _evaluate(model: Any, on_progress: Callable[[float], None]) -> int:
    """Reads the weights into memory, piece by piece; gives their bytes."""
    arrays: list[mx.array] = [leaf[1] for leaf in tree_flatten(model.parameters())]  # type: ignore[misc]
    done = read_weights(arrays, on_progress)
    # Attributes that begin with an underscore (YaRN's frequencies, say) are no parameters, but
    # the model computes with them too.
    for module in model.modules():
        mx.eval([value for value in vars(module).values() if isinstance(value, mx.array)])
        mx.eval([value for value in module.values() if isinstance(value, mx.array)])
    mx.clear_cache()
    return done


def _type_in_memory(config: Mapping[str, Any], dtype: str) -> str:
    if dtype == "float32":
        return dtype
    return f"{_stored_type(config)} int8" if dtype == "int8" else _stored_type(config)


def _stored_type(config: Mapping[str, Any]) -> str:
    quantization = config.get("quantization")
    if isinstance(quantization, dict) and "bits" in quantization:
        return f"{quantization['bits']}-bit"
    return str(config.get("torch_dtype") or config.get("dtype") or "stored")
