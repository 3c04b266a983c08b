"""Where things lie under the store's home, and how they come to lie there whole.

    models/<name>/<tag>.json    manifests
    snapshots/<digest>/         model directories
    blobs/<sha256>              the same files by content, as hard links: models share them
    damaged/<digest>/<sha256>   marks of files that were found to be damaged
    downloads/<sha256>/         fetched files that are not imported yet
    tmp/<id>/                   work in progress, each under a lock that dies with its process
    locks/

What is visible under models/ and snapshots/ got there by one rename. Never reads a model.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from headrace_server.store.locks import locked, try_lock
from headrace_server.store.names import ModelName

_NAMED = re.compile(rb'sha256(?::|":\s*")([0-9a-f]{64})')
"""A digest, or the checksum of a file, in a manifest. Its source may be called like a digest."""


class Layout:
    """The paths of one store. Several processes may use the same."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.models = home / "models"
        self.manifest = lru_cache(maxsize=256)(self._manifest)  # Every request names a model.
        """The path of a model's manifest, by its name."""
        self.snapshots = home / "snapshots"
        self.blobs = home / "blobs"
        self.damaged = home / "damaged"
        self.downloads = home / "downloads"
        self._tmp = home / "tmp"
        self._locks = home / "locks"

    def _manifest(self, name: ModelName) -> Path:
        return self.models / name.name / f"{name.tag}.json"

    def manifests(self) -> Iterator[Path]:
        """Every manifest's path."""
        return self.models.rglob("*.json")

    def remove_manifest(self, path: Path) -> None:
        """Remove a manifest and the directories that it leaves empty, within `changing`."""
        path.unlink()
        with suppress(OSError):  # Not empty: another tag or a longer name lives there.
            for directory in path.relative_to(self.models).parents[:-1]:
                (self.models / directory).rmdir()

    def snapshot(self, digest: str) -> Path:
        return self.snapshots / digest.removeprefix("sha256:")

    def blob(self, sha256: str) -> Path:
        return self.blobs / sha256

    def lock(self, name: str) -> Path:
        return self._locks / f"{name}.lock"

    def locks(self, pattern: str) -> list[Path]:
        """The locks that there are, of names like `pattern`."""
        return sorted(self._locks.glob(f"{pattern}.lock"))

    def named(self) -> frozenset[str]:
        """The digests and checksums that manifests name, in hex, within `changing`.

        Damaged manifests count: what they name may yet be wanted.
        """
        texts = [manifest.read_bytes() for manifest in self.manifests()]
        return frozenset(found.decode() for text in texts for found in _NAMED.findall(text))

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock under which names and snapshots appear and disappear, for a moment."""
        with locked(self.lock("store")):
            yield

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A directory of one's own on the store's file system, removed at the end.

        Those of processes that were killed are removed first.
        """
        self._tmp.mkdir(parents=True, exist_ok=True)
        with self.changing():
            self._sweep()
            directory = self._tmp / secrets.token_hex(8)
            lock = self._lock_of(directory)
            descriptor = try_lock(lock)
            assert descriptor is not None, "a fresh name is free"
            directory.mkdir()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
            lock.unlink(missing_ok=True)
            os.close(descriptor)

    def abandoned(self) -> list[Path]:
        """The staging directories of processes that were killed, within `changing`."""
        directories = [lock.with_suffix("") for lock in self._abandoned_locks()]
        return [directory for directory in directories if directory.is_dir()]

    def _sweep(self) -> None:
        for lock in self._abandoned_locks():
            directory = lock.with_suffix("")
            shutil.rmtree(directory, ignore_errors=True)
            if not directory.exists():  # A converter that still writes there is about to end.
                lock.unlink(missing_ok=True)

    def _abandoned_locks(self) -> Iterator[Path]:
        for lock in self._tmp.glob("*.lock"):
            descriptor = try_lock(lock)
            if descriptor is not None:
                try:
                    yield lock
                finally:
                    os.close(descriptor)

    @staticmethod
    def _lock_of(directory: Path) -> Path:
        return directory.with_suffix(".lock")


def move_into(source: Path, target: Path) -> None:
    """Rename `source` to `target`, which another rename may replace, and make that durable."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    flush_directory(target.parent)


def write_into(text: str, staging: Path, target: Path) -> None:
    """Put a file with `text` at `target`, whole or not at all."""
    fresh = staging / secrets.token_hex(8)
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    move_into(fresh, target)


def flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
