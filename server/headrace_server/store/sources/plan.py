"""What is to be fetched: files, each with what it must be. Pure; travels as JSON to the child
process that fetches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

from headrace.errors import ModelCorrupt


class Digest(Protocol):
    """A hash that is being computed."""

    def update(self, data: bytes, /) -> None:
        """Take in more."""
        ...

    def hexdigest(self) -> str:
        """What came out."""
        ...


@dataclass(frozen=True)
class RemoteFile:
    """A file at its source, and what it must be once it is here."""

    path: str
    """Inside the model, with "/" between folders."""
    url: str
    size: int | None
    """Bytes; None: the source tells with the file itself."""
    sha256: str
    """In hex; empty: `git_sha1` it is."""
    git_sha1: str = ""
    """What Git calls the file: SHA-1 over its size and content. The hub knows small files by it."""

    @property
    def key(self) -> str:
        """Its name among the downloads: files of one content share it."""
        return self.sha256 or f"git-{self.git_sha1}"

    def digest(self) -> Digest:
        """What its content is to be run through."""
        if self.sha256:
            return hashlib.sha256()
        # Names a file as Git does; nothing is signed by it.
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)

    @property
    def expected(self) -> str:
        """What the digest must come to."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True)
class Plan:
    """A model at its source."""

    version: str
    """Of what: a commit."""
    license: str | None
    files: tuple[RemoteFile, ...]

    @property
    def gguf(self) -> str | None:
        """The path of the GGUF file that it is, if it is one."""
        return next((file.path for file in self.files if file.path.endswith(".gguf")), None)


def parse_plan(fields: Mapping[str, Any]) -> Plan:
    """The plan of its own `dataclasses.asdict`."""
    files = tuple(RemoteFile(**file) for file in fields["files"])
    return Plan(fields["version"], fields["license"], files)


def check_path(path: str) -> None:
    """See that a path that a source names stays inside the model. Raises ModelCorrupt."""
    parts = path.split("/")
    plain = PurePosixPath(path).parts == tuple(parts) and path.isprintable()
    if not plain or path.startswith("/") or "\\" in path or ".." in parts:
        raise ModelCorrupt(
            f"the source lists a file named {path!r}; nothing was fetched", file=path
        )
