"""The last look at a converted model before it may be published, and its inventory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from headrace.errors import UnsupportedModel
from headrace_runner.convert.progress import Meter, Report
from headrace_runner.models.architectures import check_structure
from headrace_runner.models.tokenizer import Tokenizer

_CHUNK_BYTES = 8 << 20


def check_model(directory: Path, facts: dict[str, Any]) -> None:
    """Build the model without its weights and the tokenizer, as a runner will.

    Raises ModelCorrupt or UnsupportedModel where either cannot be built.
    """
    check_structure(directory)
    Tokenizer.load(directory)
    if not facts["context_length"] or not facts["vocab_size"]:
        raise UnsupportedModel("config.json says no context length or vocabulary size")


def inventory(directory: Path, report: Report) -> list[dict[str, Any]]:
    """Path, size and sha256 of every file in `directory`, all of them flushed to the disk."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    meter = Meter(report, "verify", sum(path.stat().st_size for path in paths))
    files = []
    for path in paths:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                meter.advance(len(chunk))
            size = file.tell()
            os.fsync(file.fileno())
        files.append(
            {
                "path": path.relative_to(directory).as_posix(),
                "size": size,
                "sha256": digest.hexdigest(),
            }
        )
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return files
