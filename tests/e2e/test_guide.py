"""The guide from an error to its cause: each failure is made, and each command in it is run.

Every line that the transcript shows has to be seen; times, numbers, ids and bars differ.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from headrace.client import Client
from headrace.types import Progress
from tests.e2e.harness import (
    MODEL,
    PATIENCE,
    QUESTION,
    Controller,
    Place,
    eventually,
    headrace,
    python_path,
)

_PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
_TITLE = "From an error to its cause"
_TRACE = re.compile(r"trace ([0-9a-f]{32})\b")
_WEIGHTS = "model.safetensors"
_BOMB = """
import os, sys
if "headrace_runner" in sys.orig_argv:
    os.write(2, b"OpenBLAS error: Memory allocation still failed after 10 retries, giving up.\\n")
    os.abort()
"""


def transcripts() -> dict[str, str]:
    """What is typed and seen, by the heading above it."""
    page = _PAGE.read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {_TITLE}\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    parts = re.split(r"^### (.+)$", section, flags=re.MULTILINE)[1:]
    block = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
    blocks = (block.findall(text) for text in parts[1::2])
    return {title: "".join(found) for title, found in zip(parts[::2], blocks, strict=True)}


def commands(transcript: str) -> Iterator[tuple[str, list[str]]]:
    """Each command with the lines that it shows."""
    for part in re.split(r"^\$ ", transcript, flags=re.MULTILINE)[1:]:
        typed, *lines = part.splitlines()
        yield typed, [line for line in lines if line.strip() not in ("", "…")]


def words(line: str) -> str:
    """What of a line is the same each time."""
    line = re.sub(r"[│├└─▏▎▍▌▋▊▉█+]", " ", line)
    line = re.sub(r"\b(?=\w*\d)[0-9a-f]{8,}\b", "0", line)
    line = re.sub(r"\d[\d.:]*", "0", line)
    line = re.sub(r"0( µs| ms| s|m 0s)(?!\w)", "0 s", line)
    return " ".join(line.split())


Scene = Callable[[Path, Path], AbstractContextManager[Place]]


@contextmanager
def damaged(home: Path, _: Path) -> Iterator[Place]:
    """A model whose weights end too early. Its real files are only linked to."""
    (snapshot,) = (
        found
        for found in (home / "snapshots").iterdir()
        if (found / _WEIGHTS).stat().st_size > 90_000_000
    )
    files = [*snapshot.resolve().iterdir()]
    snapshot.unlink()
    snapshot.mkdir()
    for file in files:
        if file.name != _WEIGHTS:
            (snapshot / file.name).symlink_to(file)
    with (snapshot / _WEIGHTS).open("wb") as short:
        short.truncate(90_000_000)
    with Controller(home) as controller:
        yield controller


@contextmanager
def little_memory(home: Path, _: Path) -> Iterator[Place]:
    with Controller(home, "--memory", "300MB") as controller:
        yield controller


@contextmanager
def native_abort(home: Path, folder: Path) -> Iterator[Place]:
    path = python_path(folder / "python", _BOMB)
    with Controller(home, extra={"PYTHONPATH": path}) as controller:
        yield controller


@contextmanager
def full_queue(home: Path, _: Path) -> Iterator[Place]:
    """One request runs and one waits, and there is place for no more."""
    with (
        Controller(home, "--max-concurrency", "1", "--queue-per-model", "1") as controller,
        Client(controller.target, timeout=PATIENCE) as client,
        client.stream_completion(MODEL, "Count.", max_tokens=4000, ignore_eos=True) as running,
    ):
        next(iter(running.text))
        with client.stream_completion(MODEL, "Count.", max_tokens=1) as waiting:
            assert isinstance(next(iter(waiting)), Progress)
            yield controller


@contextmanager
def plain(home: Path, _: Path) -> Iterator[Place]:
    with Controller(home) as controller:
        yield controller


@contextmanager
def busy(home: Path, _: Path) -> Iterator[Place]:
    """A request for which another has to wait for some seconds."""
    with (
        Controller(home, "--max-concurrency", "1") as controller,
        Client(controller.target, timeout=PATIENCE) as client,
        client.stream_completion(MODEL, QUESTION, max_tokens=200, ignore_eos=True) as running,
    ):
        next(iter(running.text))
        yield controller


SCENES: dict[str, Scene] = {
    "A damaged file": damaged,
    "Too little memory": little_memory,
    "A crash in native code": native_abort,
    "A full queue": full_queue,
    "A request that is refused": plain,
    "A slow first token": busy,
}


@pytest.mark.parametrize("title", SCENES)
def test_a_transcript_of_the_guide_is_what_is_seen(title: str, home: Path, tmp_path: Path) -> None:
    ids: dict[str, str] = {}
    with SCENES[title](home, tmp_path) as place:
        for typed, lines in commands(transcripts()[title]):
            _, *arguments = shlex.split(typed.partition(" < ")[0])
            if arguments[0] == "run":
                stdin = "a word " * 9000 if " < " in typed else None
                ended = headrace(place, *arguments, stdin=stdin, check=False)
                seen = ended.stdout + ended.stderr
                missing = unseen(lines, seen)
                shown, told = (_TRACE.search(text) for text in ("\n".join(lines), seen))
                assert shown is not None
                assert told is not None, seen
                ids[shown[1]] = told[1]
            else:
                missing, seen = looked(place, arguments, lines, ids)
            assert missing == [], f"{typed}\n{seen}"


def test_every_part_of_the_guide_is_walked() -> None:
    told = transcripts()
    assert told.keys() == SCENES.keys()
    for transcript in told.values():
        looks = [typed.split()[1] for typed, _ in commands(transcript)]
        assert looks[0] == "run"
        assert "trace" in looks


def looked(
    place: Place, arguments: list[str], lines: list[str], ids: dict[str, str]
) -> tuple[list[str], str]:
    """Look at a trace or at lines, until all are there: some are written a moment later."""
    for position, word in enumerate(arguments):
        for shown, told in ids.items():
            if len(word) > 3 and shown.startswith(word):
                arguments[position] = told[:8]
    seen = ""

    def there() -> bool:
        nonlocal seen
        seen = headrace(place, *arguments, check=False).stdout
        return not unseen(lines, seen)

    eventually(there)
    return unseen(lines, seen), seen


def unseen(lines: list[str], seen: str) -> list[str]:
    """What is missing."""
    there = {words(line) for line in seen.splitlines()}
    return [line for line in lines if words(line) not in there]
