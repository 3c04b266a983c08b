"""What mlx-lm can build: asks it, without loading weights. Never runs code that a model brings."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_runner.models.insides import load_lazily, model_classes, unbatchable_cache

_MODULE = re.compile(r"[A-Za-z0-9_.-]+")


def model_class_exists(config: Mapping[str, Any]) -> bool:
    """Whether mlx-lm has a model class for this config.json, remapped names included."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not _MODULE.fullmatch(model_type):
        return False
    try:
        model_classes(config)
    except (ValueError, AttributeError):
        return False
    return True


def check_structure(model_dir: Path) -> None:
    """Build the model and match every stored tensor with it by name and shape; reads no data.

    Raises:
        ModelCorrupt: tensors are missing, left over or of the wrong shape.
        UnsupportedModel: mlx-lm cannot build the model, or not batch its cache.
    """
    try:
        model, _ = load_lazily(model_dir)
        unbatchable = unbatchable_cache(model)
    except ValueError as error:
        raise ModelCorrupt(
            f"the tensors do not fit config.json: {first_line(error)}", file="model.safetensors"
        ) from error
    except Exception as error:  # Model classes raise whatever an odd configuration makes them.
        raise UnsupportedModel(
            f"mlx-lm cannot build this model: {type(error).__name__}: {first_line(error)}"
        ) from error
    if unbatchable is not None:
        raise UnsupportedModel(
            f"this model's cache, {unbatchable} of mlx-lm, cannot be batched; "
            "requests could not run side by side"
        )


def first_line(error: Exception) -> str:
    """What an error says, without the list of tensors that mlx-lm may put behind it."""
    return next(iter(str(error).splitlines()), "")
