"""The adapter that a request names, as the engine's value. Reads the directory's names alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.errors import ModelCorrupt, UnsupportedParameter
from headrace_runner.config import RunnerConfig
from headrace_runner.engine.text.adapters import AdapterRef
from headrace_runner.models.adapters import CONFIG, WEIGHTS

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def adapter_of(name: str, metadata: Mapping[str, Any], config: RunnerConfig) -> AdapterRef | None:
    """The adapter called `name`; None for "".

    The controller has found out which one is meant, and gives its digest. Who calls a runner
    directly gives the name of a directory in the one that the runner was started with.

    Raises UnsupportedParameter for one that is not there, ModelCorrupt for one of the controller's.
    """
    if not name:
        return None
    place = config.adapters
    if place is None:
        what = "this runner was started without adapters; give it their directory by --adapters"
        raise UnsupportedParameter(what, field="adapter")
    told = _DIGEST.fullmatch(str(metadata.get("headrace-adapter", "")))
    if told is not None:
        directory = place / told[1]
        if not directory.is_dir():
            raise ModelCorrupt(f"the adapter {name} is gone", file=WEIGHTS)
        return AdapterRef(told[0], name, directory)
    directory = place / name
    if not _NAME.fullmatch(name) or not (directory / WEIGHTS).is_file():
        there = ", ".join(sorted(_names(place))) or "none"
        what = f"there is no adapter {name!r}; there is: {there}"
        raise UnsupportedParameter(what, field="adapter")
    files = [(directory / file).stat() for file in (WEIGHTS, CONFIG) if (directory / file).exists()]
    # Other contents are another adapter.
    stamp = "/".join(f"{found.st_ino}.{found.st_mtime_ns}.{found.st_size}" for found in files)
    return AdapterRef(f"{name} {stamp}", name, directory)


def _names(place: Path) -> list[str]:
    return [path.parent.name for path in place.glob(f"*/{WEIGHTS}")]
