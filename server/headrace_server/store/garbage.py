"""What takes room in a store and belongs to no model: found, counted, removed.

Snapshots and blobs that no manifest names, downloads that were broken off, what killed processes
left, and files that are there twice. Damaged manifests count: what they name is kept.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from headrace_server.store.layout import Layout, flush_directory
from headrace_server.store.locks import try_lock
from headrace_server.store.lookup import Lookup
from headrace_server.store.sharing import adopt, duplicates, merge

GarbageKind: TypeAlias = Literal["snapshot", "blob", "download", "unfinished", "duplicate"]

_Found: TypeAlias = tuple[GarbageKind, Path]


@dataclass(frozen=True)
class GarbageItem:
    """One thing that nobody needs."""

    kind: GarbageKind
    name: str
    """Of a duplicate the model's name and the file's, with a space between; else as it is called
    under its directory."""
    size: int
    """Bytes. Of what several items share each has them."""


@dataclass(frozen=True)
class Garbage:
    """What nobody needs."""

    items: tuple[GarbageItem, ...] = ()
    size: int = 0
    """Bytes that are free once all of it is gone."""
    downloads_in_use: bool = False
    """Whether a pull is under way, which may be using what was downloaded: that is kept then."""


def find_garbage(layout: Layout, lookup: Lookup) -> Garbage:
    """What `collect_garbage` would remove. Reads no files, so duplicates are taken for such by
    their checksums alone."""
    with _idle_downloads(layout) as downloads, layout.changing():
        manifests = lookup.list()
        adopt(layout, manifests)
        paths = [*_unnamed(layout), *_of_kind("unfinished", layout.abandoned())]
        paths += _of_kind("download", downloads or ())
        twice = [
            GarbageItem("duplicate", f"{manifest.full_name} {file.path}", file.size)
            for manifest, file, _ in duplicates(layout, manifests)
        ]
        items = [*_items(paths), *twice]
        size = freed_by(path for _, path in paths) + sum(item.size for item in twice)
    return Garbage(tuple(items), size, downloads is None)


def collect_garbage(layout: Layout, lookup: Lookup) -> Garbage:
    """Remove all that nobody needs, and give what that was. Blocks."""
    with layout.changing():
        unfinished = _of_kind("unfinished", layout.abandoned())
        items, size = _items(unfinished), freed_by(path for _, path in unfinished)
    with layout.staging() as staging:
        with _idle_downloads(layout) as downloads, layout.changing():
            manifests = lookup.list()
            adopt(layout, manifests)
            paths = [*_unnamed(layout), *_of_kind("download", downloads or ())]
            items += _items(paths)
            size += freed_by(path for _, path in paths)
            _remove(layout, [path for _, path in paths], staging)
        for duplicate in duplicates(layout, manifests):
            if merge(layout, duplicate, staging):
                manifest, file, _ = duplicate
                items.append(
                    GarbageItem("duplicate", f"{manifest.full_name} {file.path}", file.size)
                )
                size += file.size
    return Garbage(tuple(items), size, downloads is None)


def drop_unnamed(layout: Layout, staging: Path) -> int:
    """Remove the snapshots and blobs that no manifest names, within `changing`, and give the bytes
    that are free once `staging` is gone."""
    paths = [path for _, path in _unnamed(layout)]
    size = freed_by(paths)
    _remove(layout, paths, staging)
    return size


def freed_by(paths: Iterable[Path]) -> int:
    """Bytes that are free once these files and directories are gone: what has other links stays."""
    links: Counter[tuple[int, int]] = Counter()
    found: dict[tuple[int, int], os.stat_result] = {}
    for path in paths:
        for file in _files(path):
            status = file.lstat()
            key = (status.st_dev, status.st_ino)
            links[key] += 1
            found[key] = status
    return sum(s.st_size for key, s in found.items() if links[key] >= s.st_nlink)


def _unnamed(layout: Layout) -> list[_Found]:
    named = layout.named()
    return [
        *_of_kind("snapshot", _not_in(named, layout.snapshots)),
        *_of_kind("blob", _not_in(named, layout.blobs)),
    ]


def _not_in(named: Collection[str], directory: Path) -> list[Path]:
    return [path for path in sorted(directory.glob("*")) if path.name not in named]


def _of_kind(kind: GarbageKind, paths: Iterable[Path]) -> list[_Found]:
    return [(kind, path) for path in paths]


def _items(found: Iterable[_Found]) -> list[GarbageItem]:
    """A blob that a snapshot of them has is part of that."""
    found = list(found)
    of_snapshots = {
        file.lstat().st_ino for kind, path in found if kind == "snapshot" for file in _files(path)
    }
    return [
        GarbageItem(kind, path.name, sum(file.lstat().st_size for file in _files(path)))
        for kind, path in found
        if kind != "blob" or path.lstat().st_ino not in of_snapshots
    ]


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        for folder, _, names in os.walk(path):
            yield from (Path(folder) / name for name in names)
    else:
        yield path


def _remove(layout: Layout, paths: Iterable[Path], staging: Path) -> None:
    """Out of sight at once; the room is free when `staging` is removed."""
    parents = set()
    for path in paths:
        path.replace(staging / secrets.token_hex(8))
        parents.add(path.parent)
    for parent in parents:
        flush_directory(parent)
    for marks in layout.damaged.glob("*"):
        if not layout.snapshot(marks.name).exists():
            shutil.rmtree(marks, ignore_errors=True)
        with suppress(OSError):  # Its marks are in use, mostly; or a kill has left it empty.
            marks.rmdir()


@contextmanager
def _idle_downloads(layout: Layout) -> Iterator[list[Path] | None]:
    """What was downloaded and is not imported, while nobody can pull that. None: somebody does."""
    # Looked at first: what lies there is of pulls whose locks are there as well.
    downloads = sorted(layout.downloads.glob("*"))
    with ExitStack() as stack:
        for lock in layout.locks("pull-*") if downloads else ():
            descriptor = try_lock(lock)
            if descriptor is None:
                yield None
                return
            stack.callback(os.close, descriptor)
        yield downloads
