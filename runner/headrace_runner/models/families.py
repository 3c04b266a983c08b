"""The families of image models that a runner can draw with. The only place that lists them.

A family is imported when it is asked for, and imports what it draws with when it loads: whoever
wants text pays for none of it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from headrace_runner.models.pipeline import ImageFamily

FAMILIES: tuple[str, ...] = (
    "headrace_runner.models.emoji.family:FAMILY",
    "headrace_runner.models.mflux.family:FAMILY",
)
"""Each a module, a colon, and the name in it of the ImageFamily."""


def find(directory: Path) -> ImageFamily | None:
    """The family of the model in `directory`; None for a model that draws no images, or none that
    this version knows. Raises what a family's `knows` raises."""
    return next((family for family in map(_load, FAMILIES) if family.knows(directory)), None)


def adapters(directory: Path) -> frozenset[str]:
    """Names of the adapters that lie beside an image model."""
    return frozenset(path.stem for path in (directory / "loras").glob("*.safetensors"))


def _load(place: str) -> ImageFamily:
    module, _, name = place.partition(":")
    return cast("ImageFamily", getattr(importlib.import_module(module), name))
