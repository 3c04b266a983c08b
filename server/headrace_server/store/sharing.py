"""Keeps what models have in common once: a file in `blobs/` by its content, and hard links to it.

A file is taken for another only after every byte of both was compared, so that damage does not
spread from one model to the next. Where there are no hard links, each model has its own files.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from headrace_server.store.damage import Marks, Stamp, condemn, stamp
from headrace_server.store.layout import Layout, flush_directory, move_into
from headrace_server.store.lookup import Lookup
from headrace_server.store.manifest import Manifest, ModelFile

_log = logging.getLogger(__name__)
_CHUNK_BYTES = 4 << 20
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}
_READ_ONLY = 0o444
Duplicate: TypeAlias = tuple[Manifest, ModelFile, Path]
_told: set[Path] = set()
"""Stores of which it was said that their file system has no hard links."""


class Placement:
    """One finished model on its way into its place.

    First `compare`, which is slow; then `place`, within `changing`, until it is true.
    """

    def __init__(self, layout: Layout, lookup: Lookup, manifest: Manifest, output: Path) -> None:
        """`output`: a directory with the model, all of it good and flushed to the disk."""
        self._layout = layout
        self._lookup = lookup
        self._manifest = manifest
        self._output = output
        self._snapshot = layout.snapshot(manifest.digest)
        self._same: dict[tuple[str, Stamp], bool] = {}
        """Whether the file of a stamp has the bytes that go by a checksum."""

    def compare(self) -> None:
        """Compare each file with those that the store has in its place. Blocks."""
        for file, path in self._rivals():
            found = stamp(path)
            if found is not None and (file.sha256, found) not in self._same:
                self._same[file.sha256, found] = same_bytes(self._output / file.path, path)

    def place(self, staging: Path) -> bool:
        """Put the model into its place, and make right what shares its files.

        False: nothing is done, since another process has brought what was not compared.
        """
        stamps = [(file.sha256, stamp(path)) for file, path in self._rivals()]
        if any(found and (sha256, found) not in self._same for sha256, found in stamps):
            return False
        for sha256, found in stamps:
            if found and not self._same[sha256, found]:
                condemn(self._layout, self._lookup.list(), sha256, found)
        linked = {f.sha256: self._share(f, staging) for f in self._manifest.files}
        for folder, _, _ in os.walk(self._output):
            flush_directory(Path(folder))
        flush_directory(self._layout.blobs)
        if self._snapshot.is_dir() and not self._snapshot.is_symlink():
            self._replace_files(linked, staging)
        else:
            if self._snapshot.is_symlink() or self._snapshot.exists():
                move_into(self._snapshot, staging / "replaced")
            move_into(self._output, self._snapshot)
        Marks(self._layout).remove(self._manifest.digest, linked)
        for sha256 in (sha256 for sha256, is_linked in linked.items() if is_linked):
            heal(self._layout, self._lookup, sha256, staging)
        return True

    def _rivals(self) -> Iterator[tuple[ModelFile, Path]]:
        """What may be in the store for each file."""
        for file in self._manifest.files:
            yield file, self._layout.blob(file.sha256)
            if not self._snapshot.is_symlink():
                yield file, self._snapshot / file.path

    def _share(self, file: ModelFile, staging: Path) -> bool:
        fresh = self._output / file.path
        fresh.chmod(_READ_ONLY)
        self._layout.blobs.mkdir(parents=True, exist_ok=True)
        return share(self._layout, fresh, file.sha256, staging)

    def _replace_files(self, linked: dict[str, bool], staging: Path) -> None:
        """The directory stays: a runner may be reading from it."""
        for file in self._manifest.files:
            path = self._snapshot / file.path
            found = stamp(path)
            if found is not None and found[2] == file.size:
                is_shared = found == stamp(self._layout.blob(file.sha256))
                if is_shared or (not linked[file.sha256] and self._same[file.sha256, found]):
                    continue
            if path.is_dir():
                path.replace(staging / secrets.token_hex(8))
            move_into(self._output / file.path, path)


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two files have the same bytes. False where one cannot be read."""
    try:
        with one.open("rb") as left, other.open("rb") as right:
            if os.fstat(left.fileno()).st_size != os.fstat(right.fileno()).st_size:
                return False
            while chunk := left.read(_CHUNK_BYTES):
                if chunk != right.read(_CHUNK_BYTES):
                    return False
            return not right.read(1)
    except OSError:
        return False


def share(layout: Layout, path: Path, sha256: str, staging: Path) -> bool:
    """Make the file at `path` and its blob one, within `changing`; both have the same bytes.

    The blob stays what it is, if there is one. False where the file system has no hard links; then
    nothing has changed.
    """
    blob = layout.blob(sha256)
    if not blob.exists():
        return _link(layout, blob, path)
    if blob.samefile(path):
        return True
    fresh = staging / secrets.token_hex(8)
    if not _link(layout, fresh, blob):
        return False
    fresh.replace(path)
    return True


def heal(layout: Layout, lookup: Lookup, sha256: str, staging: Path) -> None:
    """Put the blob, which is good, in the place of what is marked as damaged; within `changing`."""
    marks = Marks(layout)
    for digest in marks.owners(sha256):
        manifest = next((m for m in lookup.list() if m.digest == digest), None)
        snapshot = layout.snapshot(digest)
        if manifest is None or snapshot.is_symlink():
            continue
        for file in manifest.files_of(sha256):
            path, blob = snapshot / file.path, layout.blob(sha256)
            if stamp(path) != stamp(blob):
                fresh = staging / secrets.token_hex(8)
                fresh.hardlink_to(blob)
                move_into(fresh, path)
        marks.remove(digest, [sha256])


def adopt(layout: Layout, manifests: Iterable[Manifest]) -> None:
    """Make blobs of files that have none, within `changing`: of models that an earlier version has
    stored, or that were copied without their links."""
    made = False
    for manifest, file, path in own_files(layout, manifests):
        blob, found = layout.blob(file.sha256), stamp(path)
        if found is None or found[2] != file.size or blob.exists():
            continue
        if file.sha256 in Marks(layout).of(manifest.digest):
            continue
        blob.parent.mkdir(parents=True, exist_ok=True)
        path.chmod(_READ_ONLY)
        if not _link(layout, blob, path):
            break
        made = True
    if made:
        flush_directory(layout.blobs)


def duplicates(layout: Layout, manifests: Iterable[Manifest]) -> Iterator[Duplicate]:
    """The files that their blobs could stand for, were they found to be the same."""
    for manifest, file, path in own_files(layout, manifests):
        found, blob = stamp(path), stamp(layout.blob(file.sha256))
        is_damaged = file.sha256 in Marks(layout).of(manifest.digest)
        if found and blob and found != blob and found[2] == blob[2] and not is_damaged:
            yield manifest, file, path


def merge(layout: Layout, duplicate: Duplicate, staging: Path) -> bool:
    """Let the blob stand for a file that has the same bytes. Blocks; takes `changing` itself."""
    _, file, path = duplicate
    blob = layout.blob(file.sha256)
    before = stamp(path), stamp(blob)
    if None in before or not same_bytes(path, blob):
        return False
    with layout.changing():
        if before != (stamp(path), stamp(blob)) or not share(layout, path, file.sha256, staging):
            return False
        flush_directory(path.parent)
    return True


def own_files(layout: Layout, manifests: Iterable[Manifest]) -> Iterator[Duplicate]:
    """Every file that lies in this store, once. What is a symbolic link lies elsewhere."""
    for manifest in {manifest.digest: manifest for manifest in manifests}.values():
        snapshot = layout.snapshot(manifest.digest)
        if not snapshot.is_symlink():
            for file in manifest.files:
                path = snapshot / file.path
                if not path.is_symlink():
                    yield manifest, file, path


def _link(layout: Layout, fresh: Path, existing: Path) -> bool:
    """Whether `fresh` could be made a link to `existing`."""
    try:
        fresh.hardlink_to(existing)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if layout.blobs not in _told:
            _told.add(layout.blobs)
            _log.info(
                "models do not share their files, since hard links cannot be made in %s: %s",
                layout.blobs.parent,
                error.strerror,
            )
        return False
    return True
