"""Takes over the directory of an image model: copies what its family lists, and looks at it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from headrace.errors import ModelCorrupt
from headrace_runner.convert.directory import copy
from headrace_runner.convert.facts import NO_FACTS_OF_TEXT
from headrace_runner.convert.progress import Meter, Report
from headrace_runner.models.pipeline import ImageFamily, Unwatched, smallest_drawing

_QUICK_BYTES = 256 << 20
"""Weights up to which a model is tried out before it may be published."""


def import_images(
    source: Path, output: Path, family: ImageFamily, report: Report
) -> dict[str, Any]:
    """Copy the model in `source` to `output` and return its facts.

    Raises UnsupportedModel for what the family cannot draw with, ModelCorrupt for damaged files.
    """
    family.facts(source)  # Before gigabytes are copied.
    files = {path.relative_to(source): path for path in family.files(source)}
    meter = Meter(report, "store", sum(path.stat().st_size for path in files.values()))
    for name, path in sorted(files.items()):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        copy(path, output / name, meter)
    return image_facts(output, family)


def image_facts(directory: Path, family: ImageFamily) -> dict[str, Any]:
    """What a manifest says of an image model. Raises as `import_images`."""
    traits = family.traits(directory)
    working = family.working_bytes(directory, traits.width, traits.height, 1)
    return {
        "format": "mlx",
        **NO_FACTS_OF_TEXT,
        "license": None,
        **family.facts(directory),
        "kind": "image",
        "image": {**asdict(traits), "working_bytes": working},
    }


def check_images(directory: Path, family: ImageFamily, facts: dict[str, Any]) -> None:
    """Look at the copy as a runner will, and draw with it where that is quick.

    Raises ModelCorrupt or UnsupportedModel where that cannot be done.
    """
    if not family.knows(directory):
        raise ModelCorrupt("the files that were copied are no whole model", file="config.json")
    if facts["tensor_bytes"] <= _QUICK_BYTES:
        pipeline = family.load(directory, "stored", lambda fraction: None)
        pipeline.draw([smallest_drawing(pipeline.traits)], Unwatched())
