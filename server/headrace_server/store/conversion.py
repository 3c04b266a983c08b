"""Has a model converted by a child process. The controller itself never imports MLX."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headrace.errors import (
    FieldViolation,
    HeadraceError,
    InvalidRequest,
    LoadFailed,
    ModelCorrupt,
    UnsupportedModel,
)
from headrace.host.blas import BlasError, find_blas
from headrace.host.compiler import has_cxx
from headrace.host.environment import runner_environment
from headrace.host.machine import describe
from headrace_server.store.child import run_child
from headrace_server.store.progress import OnProgress, Progress

_log = logging.getLogger(__name__)
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


@dataclass(frozen=True)
class ImportOptions:
    """How a model is to be converted."""

    quantize: Literal["stored", "none", "4", "8"] = "stored"
    """Bits of the matrices; "stored" leaves them as they are, where MLX can hold them so."""
    check: bool = True
    """Whether a language model is tried out."""
    base: str | None = None
    """Name of the model that an adapter belongs to."""


AS_STORED = ImportOptions()
"""What is done where nothing was asked for."""


@dataclass(frozen=True)
class Conversion:
    """What the converter says of the directory that it has filled."""

    facts: Mapping[str, Any]
    files: Sequence[Mapping[str, Any]]


async def convert(
    source: Path,
    output: Path,
    home: Path,
    options: ImportOptions,
    on_progress: OnProgress,
    base: Path | None = None,
) -> Conversion:
    """Fill the empty directory `output` with the MLX form of `source`, flushed to the disk.

    `home` is the store's, where a BLAS library may be that makes trying it out quick; `base` the
    directory of an adapter's model.

    Raises:
        InvalidRequest, UnsupportedModel, ModelCorrupt: as the converter found.
        LoadFailed: the converter died.
    """
    outcome: dict[str, Any] = {}

    def on_line(line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            return  # A library that prints: no part of the protocol.
        if not isinstance(event, dict):
            return
        if event.get("event") == "progress":
            on_progress(Progress(event["phase"], event["done"], event["total"]))
        elif event.get("event") == "checked":
            _log.info("model %s", event["found"], extra={"source": source.name})
        else:
            outcome.update(event)

    ended = await run_child(
        [
            *(sys.executable, "-m", "headrace_runner.convert"),
            *("--source", str(source), "--output", str(output), "--parent", "stdin"),
            *("--quantize", options.quantize),
            *(() if options.check else ("--no-check",)),
            *(() if base is None else ("--base", str(base))),
        ],
        on_line,
        await asyncio.to_thread(_environment, home),
    )
    if outcome.get("event") == "done" and ended.returncode == 0:
        return Conversion(outcome["facts"], outcome["files"])
    if outcome.get("event") == "failed":
        raise _error(outcome["reason"], outcome["message"], outcome["file"], outcome["field"])
    last = next((line for line in reversed(ended.errors.splitlines()) if line.strip()), "")
    raise LoadFailed(
        cause="EXITED",
        message=f"the converter of {source.name} ended with status {ended.returncode}: {last}",
    )


def _environment(home: Path) -> dict[str, str]:
    """With one BLAS thread: more wait for each other where the cores are busy with runners."""
    with suppress(BlasError):
        blas = find_blas(os.environ.get("HEADRACE_BLAS"), home)
        own = runner_environment(os.environ, describe(), blas, has_cxx(), threads=1)
        return own | _ENVIRONMENT
    return dict(_ENVIRONMENT)


def _error(reason: str, message: str, file: str, field: str) -> HeadraceError:
    if reason == "MODEL_CORRUPT":
        return ModelCorrupt(message, file=file)
    if reason == "UNSUPPORTED_MODEL":
        return UnsupportedModel(message)
    return InvalidRequest(message, violations=[FieldViolation(field, message)] if field else ())
