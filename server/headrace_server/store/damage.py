"""What is wrong with a model's files: seen by their sizes, or by reading every byte of them.

A file whose bytes are not those that were stored is marked, so that no load takes it and a pull
knows to fetch it again; the mark goes when the file is replaced, or turns out to be good.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from headrace.errors import ModelCorrupt
from headrace_server.store import catalogue
from headrace_server.store.layout import Layout, flush_directory
from headrace_server.store.manifest import Manifest, ModelFile
from headrace_server.store.sources.reference import command_for

_CHUNK_BYTES = 4 << 20
_TELL_EVERY = 64 << 20
"""Bytes between two steps of `Verification`."""

DamageKind: TypeAlias = Literal["missing", "size", "checksum", "unreadable", "manifest"]
Stamp: TypeAlias = tuple[int, int, int, int]
"""Tells a file from another that took its place: device, inode, bytes, time of its last change."""


@dataclass(frozen=True)
class Damage:
    """What is wrong with one file."""

    file: str
    """Its path inside the model; of a manifest its name."""
    kind: DamageKind
    what: str
    """In words, such as "is missing"."""


@dataclass(frozen=True)
class Reading:
    """How much of all models has been read, in bytes."""

    model: str
    done: int
    total: int


@dataclass(frozen=True)
class Verified:
    """What was found about a model."""

    model: str
    digest: str
    """Empty where its manifest is damaged."""
    size: int
    """Bytes of its files, as its manifest says."""
    damages: tuple[Damage, ...] = ()
    remedy: str = ""
    """What gets it right again. Empty where nothing is damaged."""


def stamp(path: Path) -> Stamp | None:
    """The stamp of a file; None where there is none."""
    if not path.is_file():
        return None
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class Marks:
    """The marks of damaged files, which are changed within `changing`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def of(self, digest: str) -> frozenset[str]:
        """The checksums of a model's files that are damaged."""
        try:
            return frozenset(mark.name for mark in self._of(digest).iterdir())
        except FileNotFoundError:
            return frozenset()

    def owners(self, sha256: str) -> list[str]:
        """The digests of the models whose file of this checksum is damaged."""
        return [f"sha256:{path.parent.name}" for path in self._layout.damaged.glob(f"*/{sha256}")]

    def add(self, digest: str, sha256: str) -> None:
        """Mark a file, for good."""
        directory = self._of(digest)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / sha256).touch()
        flush_directory(directory)
        flush_directory(self._layout.damaged)

    def remove(self, digest: str, sha256: Iterable[str]) -> None:
        """Remove marks, where there are any."""
        directory = self._of(digest)
        for mark in sha256:
            (directory / mark).unlink(missing_ok=True)
        with suppress(OSError):  # Not there, or not empty.
            directory.rmdir()

    def _of(self, digest: str) -> Path:
        return self._layout.damaged / digest.removeprefix("sha256:")


def seen_damages(layout: Layout, manifest: Manifest) -> Iterator[Damage]:
    """What can be seen without reading: files that are missing, have another size, or a mark."""
    marks = Marks(layout).of(manifest.digest)
    for file in manifest.files:
        found = stamp(layout.snapshot(manifest.digest) / file.path)
        if found is None:
            yield Damage(file.path, "missing", "is missing")
        elif found[2] != file.size:
            yield Damage(file.path, "size", f"has {found[2]} bytes, not {file.size}")
        elif file.sha256 in marks:
            yield _changed(file)


def error_of(manifest: Manifest, damage: Damage) -> ModelCorrupt:
    """The error for a model with this damage."""
    return ModelCorrupt(
        f"{damage.file} of {manifest.full_name} {damage.what}; {remedy(manifest)}",
        file=damage.file,
    )


def remedy(manifest: Manifest) -> str:
    """How to get a damaged model right again."""
    origin = manifest.source.partition("@")[0]
    entry = next((entry for entry in catalogue.CATALOGUE if entry.source == origin), None)
    if entry is not None:
        return f"`headrace pull {entry.name}` gets it again"
    if command := command_for(manifest.source, manifest.full_name):
        return f"`{command}` gets it again"
    over = f" and --base {manifest.adapter.base}" if manifest.adapter else ""
    return f"import {manifest.source} again as {manifest.full_name}, with --replace{over}"


def damaged_manifest(layout: Layout, path: Path, error: ModelCorrupt) -> Verified:
    """What a manifest that cannot be read comes to."""
    name = path.relative_to(layout.models).with_suffix("")
    full_name = f"{name.parent.as_posix()}:{name.name}"
    damage = Damage(path.name, "manifest", f"is damaged: {error.__cause__}")
    return Verified(full_name, "", 0, (damage,), "remove the model and get it again")


def condemn(layout: Layout, manifests: Iterable[Manifest], sha256: str, found: Stamp) -> None:
    """Mark a damaged file in every model that has it, and give it to no other; within `changing`.

    `found`: the stamp of the file that should have this checksum and has not.
    """
    marks = Marks(layout)
    for manifest in manifests:
        paths = (layout.snapshot(manifest.digest) / f.path for f in manifest.files_of(sha256))
        if any(stamp(path) == found for path in paths):
            marks.add(manifest.digest, sha256)
    blob = layout.blob(sha256)
    if stamp(blob) == found:
        blob.unlink()
        flush_directory(blob.parent)


class Verification:
    """Reads models, each file once however many share it, and marks what is damaged."""

    def __init__(
        self,
        layout: Layout,
        manifests: Iterable[Manifest],
        current: Callable[[], Iterable[Manifest]],
    ) -> None:
        """`current`: what the store has just now."""
        self._layout = layout
        self._manifests = list(manifests)
        self._current = current
        self._checksums: dict[Stamp, str | None] = {}
        """By file that was read; None: it cannot be."""
        self._done = 0
        self._total = 0

    def steps(self) -> Iterator[Reading | Verified]:
        """A step each 64 MiB, and one for each model. Blocks. A model that is removed meanwhile is
        left out."""
        self._total = self._bytes()
        for manifest in self._manifests:
            damages = []
            for file in manifest.files:
                damage = yield from self._verify(manifest, file)
                if damage is not None:
                    damages.append(damage)
            if damages and not self._is_current(manifest):
                continue
            yield self._reading(manifest)
            repair = remedy(manifest) if damages else ""
            name, digest, size = manifest.full_name, manifest.digest, manifest.size
            yield Verified(name, digest, size, tuple(damages), repair)

    def _verify(
        self, manifest: Manifest, file: ModelFile
    ) -> Generator[Reading, None, Damage | None]:
        path = self._path(manifest, file)
        while True:
            found = stamp(path)
            if found is None:
                return Damage(file.path, "missing", "is missing")
            if found not in self._checksums:
                self._checksums[found] = yield from self._checksum(manifest, path)
            if self._judge(manifest, file, found):
                break  # It was not replaced while it was read.
        if found[2] != file.size:
            return Damage(file.path, "size", f"has {found[2]} bytes, not {file.size}")
        checksum = self._checksums[found]
        if checksum is None:
            return Damage(file.path, "unreadable", "cannot be read")
        return None if checksum == file.sha256 else _changed(file)

    def _judge(self, manifest: Manifest, file: ModelFile, found: Stamp) -> bool:
        """Mark a file, or take its mark away. False: it is another by now."""
        marks, path = Marks(self._layout), self._path(manifest, file)
        is_good = self._checksums[found] == file.sha256
        if is_good and file.sha256 not in marks.of(manifest.digest):
            return True
        with self._layout.changing():
            if stamp(path) != found:
                return False
            if is_good:
                marks.remove(manifest.digest, [file.sha256])
            else:
                condemn(self._layout, self._current(), file.sha256, found)
        return True

    def _checksum(self, manifest: Manifest, path: Path) -> Generator[Reading, None, str | None]:
        digest, told = hashlib.sha256(), self._done
        yield self._reading(manifest)
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    self._done += len(chunk)
                    if self._done - told >= _TELL_EVERY:
                        told = self._done
                        yield self._reading(manifest)
        except OSError:  # A fault of the disk; or the file is gone, which its stamp tells.
            return None
        return digest.hexdigest()

    def _reading(self, manifest: Manifest) -> Reading:
        # What is replaced while it is read is read again.
        return Reading(manifest.full_name, min(self._done, self._total), self._total)

    def _is_current(self, manifest: Manifest) -> bool:
        return any(
            (other.full_name, other.digest) == (manifest.full_name, manifest.digest)
            for other in self._current()
        )

    def _bytes(self) -> int:
        stamps = {stamp(self._path(m, file)) for m in self._manifests for file in m.files}
        return sum(found[2] for found in stamps if found is not None)

    def _path(self, manifest: Manifest, file: ModelFile) -> Path:
        return self._layout.snapshot(manifest.digest) / file.path


def _changed(file: ModelFile) -> Damage:
    return Damage(file.path, "checksum", "has not the checksum it was stored with")
