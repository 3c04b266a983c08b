"""Has a model converted by a child process. The controller itself never imports MLX."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import (
    HeadraceError,
    InvalidRequest,
    LoadFailed,
    ModelCorrupt,
    UnsupportedModel,
)
from headrace_server.store.child import run_child
from headrace_server.store.progress import OnProgress, Progress

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


@dataclass(frozen=True)
class Conversion:
    """What the converter says of the directory that it has filled."""

    facts: Mapping[str, Any]
    files: Sequence[Mapping[str, Any]]


async def convert(source: Path, output: Path, on_progress: OnProgress) -> Conversion:
    """Fill the empty directory `output` with the MLX form of `source`, flushed to the disk.

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
        else:
            outcome.update(event)

    ended = await run_child(
        [
            *(sys.executable, "-m", "headrace_runner.convert"),
            *("--source", str(source), "--output", str(output), "--parent", "stdin"),
        ],
        on_line,
        _ENVIRONMENT,
    )
    if outcome.get("event") == "done" and ended.returncode == 0:
        return Conversion(outcome["facts"], outcome["files"])
    if outcome.get("event") == "failed":
        raise _error(outcome["reason"], outcome["message"], outcome["file"])
    last = next((line for line in reversed(ended.errors.splitlines()) if line.strip()), "")
    raise LoadFailed(
        cause="EXITED",
        message=f"the converter of {source.name} ended with status {ended.returncode}: {last}",
    )


def _error(reason: str, message: str, file: str) -> HeadraceError:
    if reason == "MODEL_CORRUPT":
        return ModelCorrupt(message, file=file)
    if reason == "UNSUPPORTED_MODEL":
        return UnsupportedModel(message)
    return InvalidRequest(message)
