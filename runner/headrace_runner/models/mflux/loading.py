"""Has mflux load a model, and makes sure that it is the one that the files hold."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from headrace.errors import HeadraceError, ModelCorrupt, UnsupportedModel
from headrace_runner.models.architectures import first_line
from headrace_runner.models.device import is_allocation_failure, on_cpu, read_weights
from headrace_runner.models.insides import dequantized
from headrace_runner.models.mflux import insides
from headrace_runner.models.mflux.catalogue import BASES, Architecture
from headrace_runner.models.mflux.layout import (
    DESCRIPTION,
    Layout,
    quantization,
    saved_by_mflux,
    tensors,
)
from headrace_runner.models.pipeline import Dtype


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model of mflux that is ready to draw."""

    model: Any
    architecture: Architecture
    computes: mx.Dtype | None
    """The type that it computes in; None: mflux's own."""
    weights: str
    weights_bytes: int


def load(layout: Layout, dtype: Dtype, on_progress: Callable[[float], None]) -> Loaded:
    """Loads the model, on the thread that is to draw with it. See `ImageFamily.load`."""
    tensors(layout.directory)
    architecture = BASES[layout.base].architecture.seen(layout.references)
    computes = computing_dtype(dtype, quantization(layout.directory) is not None)
    with insides.computing(computes):
        model = _made(layout, architecture)
        if computes is not None:
            # First the scales: what is dequantised takes their type, and would lose bits in half.
            model.set_dtype(computes)
        if dtype == "float32":
            model = dequantized(model)
        weights_bytes = read_weights(insides.arrays(model.parameters()).values(), on_progress)
    return Loaded(model, architecture, computes, _weights(model, dtype), weights_bytes)


def computing_dtype(dtype: Dtype, quantised: bool) -> mx.Dtype | None:
    """What a model computes in; None: mflux's own, bfloat16.

    Quantised products on a CPU take four times as long with bfloat16 about them as with float32.
    """
    return mx.float32 if dtype == "float32" or (quantised and on_cpu()) else None


def _made(layout: Layout, architecture: Architecture) -> Any:
    made = insides.resolve(architecture.model)
    config = insides.model_config(layout.base)
    try:
        with (
            insides.quiet(),
            insides.checked(functools.partial(_check, saved_by_mflux(layout.directory))),
            insides.shaped(architecture.initializer, architecture.shaped, layout.shapes),
        ):
            return made(model_path=str(layout.directory), model_config=config)
    except HeadraceError:
        raise
    except ImportError as error:
        raise UnsupportedModel(
            f"to read this model's weights as they are needs {error.name}; save them with"
            " mflux-save on a machine that has it, and import what it writes",
            architecture=architecture.name,
        ) from error
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError, OSError) as error:
        if is_allocation_failure(error):
            raise
        # The weight files are whole, so what mflux rejects is that they do not fit each other.
        file = _file_in(str(error), layout.directory)
        what = first_line(error).replace(f"{layout.directory}/", "")
        raise ModelCorrupt(f"mflux cannot load the model: {what}", file=file) from error


def _check(saved: bool, component: str, made: insides.Shapes, stored: insides.Shapes) -> None:
    """Weights fit the component that is to take them. Widths of an autoencoder are its weights'."""
    packed = {name.removesuffix(".scales") for name in stored if name.endswith(".scales")}
    for name, shape in stored.items():
        if name.rpartition(".")[0] in packed or component == "vae":
            continue
        if made.get(name, () if component == "transformer" else shape) != shape:
            raise ModelCorrupt(
                f"the weight {name} of {component} has the shape {shape}, and the model has"
                f" {made.get(name, 'no such weight')}; is it the model that {DESCRIPTION} or"
                " mflux_model.json names?",
                file=component,
            )
    missing = made.keys() - stored.keys()
    # Elsewhere mflux looks itself; what it computes, tables of frequencies say, is not there.
    if saved and missing:
        raise ModelCorrupt(f"the weight {min(missing)} of {component} is missing", file=component)


def _file_in(message: str, directory: Path) -> str:
    """The path in `directory` that mflux's message names, or what it comes from most likely."""
    named = re.search(re.escape(str(directory)) + r"/([\w./-]+)", message)
    if named:
        return named.group(1).rstrip("./")
    return "tokenizer" if "tokenizer" in message else DESCRIPTION


def _weights(model: Any, dtype: Dtype) -> str:
    if dtype == "float32":
        return "float32"
    return f"{model.bits}-bit" if model.bits else "bfloat16"
