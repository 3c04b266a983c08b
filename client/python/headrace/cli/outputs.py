"""Where pictures are written: a file that is named, or one after the prompt that is new."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

import click

_SUFFIXES: Final = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp"}
FORMATS: Final = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
_LONGEST: Final = 48


class Outputs:
    """The files of one command."""

    def __init__(self, prompt: str, output: str | None, pictures: int) -> None:
        """`output`: a file, a directory, or None for this one.

        Raises UsageError where nothing can be written: better before than after the drawing.
        """
        path = Path(output or ".").expanduser()
        directory = path.is_dir() or (output or "").endswith(os.sep)
        self._named = None if directory else path
        self._directory = path if directory else path.parent
        self._stem = slug(prompt)
        self._pictures = pictures
        if not self._directory.is_dir():
            raise click.UsageError(f"there is no directory {self._directory}")
        try:
            # Tried: what permissions say is neither true of root nor of every file system.
            TemporaryFile(dir=self._directory).close()
        except OSError as error:
            place, why = self._directory.absolute(), error.strerror
            raise click.UsageError(f"nothing can be written into {place}: {why}") from None

    def write(self, data: bytes, index: int, media_type: str) -> Path:
        """Writes one picture and gives its path.

        A file that was named is replaced; no other is.
        """
        if self._named is not None:
            ending = f"-{index + 1}" if self._pictures > 1 else ""
            target = self._named.with_name(f"{self._named.stem}{ending}{self._named.suffix}")
            target.write_bytes(data)
            return target
        for target in self._candidates(_SUFFIXES.get(media_type, "")):
            with suppress(FileExistsError), target.open("xb") as file:
                file.write(data)
                return target
        raise AssertionError("there are as many names as numbers")

    def _candidates(self, suffix: str) -> Iterator[Path]:
        yield self._directory / f"{self._stem}{suffix}"
        for number in count(2):
            yield self._directory / f"{self._stem}-{number}{suffix}"


def slug(prompt: str) -> str:
    """A name for a file: the words of a prompt, in small letters."""
    words = re.findall(r"\w+", prompt.lower())
    text = ""
    for word in words:
        longer = f"{text}-{word}" if text else word
        if len(longer) > _LONGEST:
            break
        text = longer
    return text or (words[0][:_LONGEST] if words else "image")


def format_of(output: str | None, named: str | None) -> str | None:
    """The format that a file's name asks for, or `named`; None for the server's own choice.

    Raises UsageError where the two differ, or the name's is none that is drawn.
    """
    suffix = Path(output).suffix.lower() if output not in (None, "-") else ""
    if not suffix or Path(output or "").is_dir():
        return named
    told = FORMATS.get(suffix)
    if told is None and named is None:
        raise click.UsageError(f"{suffix} is none of {', '.join(FORMATS)}: say --format")
    if told is not None and named not in (None, told):
        raise click.UsageError(f"--format {named} does not go with a file called {output}")
    return named or told
