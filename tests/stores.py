"""Stores of small models that are made at once, by the store's own code but for the conversion."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from headrace_server.store import Manifest, Store
from headrace_server.store.layout import Layout
from headrace_server.store.manifest import new_manifest
from headrace_server.store.names import parse_name

FOLDERS = ("models", "snapshots", "blobs", "damaged", "downloads", "tmp")
Files = Mapping[str, bytes]
_FACTS = {
    "kind": "text",
    "format": "mlx",
    "architecture": "llama",
    "tensor_bytes": 1000,
    "parameters": 500,
    "context_length": 128,
    "quantization": "",
    "layers": 2,
    "kv_heads": 2,
    "head_dim": 8,
    "vocab_size": 32,
    "chat_template": None,
    "license": None,
}


def visible(home: Path) -> list[str]:
    """Everything that a store holds, beside its locks."""
    found = (path for folder in FOLDERS for path in (home / folder).rglob("*"))
    return sorted(str(path.relative_to(home)) for path in found)


def put(store: Store, name: str, files: Files, *, replace: bool = False) -> Manifest:
    """Store these files as a model, as an import does once they are converted."""
    wanted = parse_name(name)
    with store._layout.staging() as staging:
        output = staging / "model"
        for path, data in files.items():
            (output / path).parent.mkdir(parents=True, exist_ok=True)
            (output / path).write_bytes(data)
        listed = [
            {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for path, data in files.items()
        ]
        manifest = new_manifest(
            wanted.name,
            wanted.tag,
            _FACTS,
            listed,
            source="files",
            created_at="2026-01-01T00:00:00+00:00",
        )
        store._publish(manifest, output, staging, replace)
    return manifest


def copy_store(source: Path, target: Path) -> Path:
    """A copy of a store whose files share what those of the original do."""
    copies: dict[int, Path] = {}

    def copy(original: str, copied: str) -> None:
        inode = Path(original).stat().st_ino
        if inode in copies:
            os.link(copies[inode], copied)
        else:
            shutil.copy2(original, copied)
            copies[inode] = Path(copied)

    return Path(shutil.copytree(source, target, copy_function=copy))


def spoil(path: Path) -> None:
    """Flip a bit in the middle of a file, in place: in all that share it."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    path.chmod(0o444)


def cut(path: Path, size: int) -> None:
    """Cut a file to so many bytes, in place: in all that share it."""
    path.chmod(0o644)
    os.truncate(path, size)
    path.chmod(0o444)


def assert_whole(home: Path) -> None:
    """Every byte of every model is what was stored, all of it is shared, and nothing is left over.

    Looks at the files themselves, and asks the store for nothing but its list.
    """
    store, layout = Store(home), Layout(home)
    digests, checksums = set(), set()
    manifests = store.list()
    assert len(manifests) == len(list(layout.manifests()))
    for manifest in manifests:
        digests.add(manifest.digest)
        snapshot = store.path(manifest)
        assert _paths(snapshot) == {file.path for file in manifest.files}
        for file in manifest.files:
            checksums.add(file.sha256)
            data = (snapshot / file.path).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file.sha256, (manifest.full_name, file.path)
            assert layout.blob(file.sha256).samefile(snapshot / file.path)
    assert {f"sha256:{path.name}" for path in layout.snapshots.glob("*")} == digests
    assert {path.name for path in layout.blobs.glob("*")} == checksums
    assert list(layout.damaged.glob("*")) == []
    assert list(layout.downloads.glob("*")) == []
    assert list((home / "tmp").glob("*")) == []


def _paths(directory: Path) -> set[str]:
    def files() -> Iterator[str]:
        for path in directory.rglob("*"):
            if path.is_file():
                yield path.relative_to(directory).as_posix()

    return set(files())
