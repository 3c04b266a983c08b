"""A file that is on its way: what is there of it survives its process, to the last byte.

<key>             the whole file, its digest as it must be
<key>.partial     its beginning
<key>.etag        what the source called the version that this is the beginning of
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace.errors import ModelCorrupt
from headrace_server.store.layout import flush_directory
from headrace_server.store.sources.plan import RemoteFile

_CHUNK_BYTES = 4 << 20


class Partial:
    """The beginning of a file in `directory`, open for more. One process at a time."""

    def __init__(self, directory: Path, file: RemoteFile) -> None:
        """Reads what is there, for its digest. Blocks."""
        self._file = file
        self._directory = directory
        self._path = directory / f"{file.key}.partial"
        self._etag = directory / f"{file.key}.etag"
        # Unbuffered: what was received is in the kernel's hands, whatever becomes of the process.
        self._sink = self._path.open("a+b", buffering=0)
        self._digest = file.digest()
        self.size = 0
        """Bytes that are there."""
        self._sink.seek(0)
        while chunk := self._sink.read(_CHUNK_BYTES):
            self._digest.update(chunk)
            self.size += len(chunk)
        if file.size is not None and self.size > file.size:
            self.restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._sink.close()

    @property
    def etag(self) -> str:
        """Of the version that this is the beginning of; empty where the source named none."""
        with suppress(FileNotFoundError, UnicodeDecodeError):
            return self._etag.read_text("ascii")
        return ""

    def begin(self, etag: str) -> None:
        """Remember what the source calls the version that follows."""
        if etag:
            self._etag.write_text(etag, "ascii")
        else:
            self._etag.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Take in what follows. Raises ModelCorrupt where that is more than there should be."""
        if self._file.size is not None and self.size + len(chunk) > self._file.size:
            self.discard()
            raise self._wrong(f"is longer than the {self._file.size} bytes that it should have")
        view = memoryview(chunk)
        while view:
            view = view[self._sink.write(view) :]
        self._digest.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        """Forget what is there."""
        self._sink.truncate(0)
        self._digest = self._file.digest()
        self.size = 0

    def discard(self) -> None:
        """Remove what is there, for good."""
        self._path.unlink(missing_ok=True)
        self._etag.unlink(missing_ok=True)

    def finish(self) -> None:
        """Make it the whole file, on the disk. Raises ModelCorrupt where it is another."""
        if self._digest.hexdigest() != self._file.expected:
            self.discard()
            kind = "SHA-256" if self._file.sha256 else "Git's SHA-1"
            raise self._wrong(
                f"has {self._digest.hexdigest()} as {kind}, not {self._file.expected}"
            )
        os.fsync(self._sink.fileno())
        self._path.replace(self._directory / self._file.key)
        self._etag.unlink(missing_ok=True)
        flush_directory(self._directory)

    def _wrong(self, what: str) -> ModelCorrupt:
        return ModelCorrupt(
            f"what came as {self._file.path} {what}; it was thrown away, pull again",
            file=self._file.path,
        )
