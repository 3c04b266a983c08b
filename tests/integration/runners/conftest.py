"""Runner processes to test with: stand-ins that keep the protocol."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from headrace_server.runners.lifecycle import Limits
from headrace_server.runners.spares import Activity
from headrace_server.runners.spec import RunnerSpec
from tests.integration.runners.support import CHILD, Command, Supervise, Watched


@pytest.fixture
def environment() -> dict[str, str]:
    """What a child needs to import this checkout."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "GRPC_ENABLE_FORK_SUPPORT": "false",
    }


@pytest.fixture
def sockets(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    """The folder in which runners' socket folders are made."""
    folder = tmp_path_factory.mktemp("s")
    environment["XDG_RUNTIME_DIR"] = str(folder)
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> RunnerSpec:
    return RunnerSpec(
        id="r1", model="tiny", digest="sha256:abc", model_dir=tmp_path, stall_timeout=20.0
    )


@pytest.fixture
def command() -> Command:
    return lambda mode: (sys.executable, str(CHILD), mode)


@pytest.fixture
async def supervise(
    environment: dict[str, str], sockets: Path, command: Command
) -> AsyncIterator[Supervise]:
    """Makes supervisors, stops their runners, and looks for what they left behind."""
    made: list[Watched] = []

    def make(
        mode: str,
        limits: Limits | None = None,
        activity: Callable[[], Activity] | None = None,
    ) -> Watched:
        made.append(Watched(environment, command(mode), limits, activity))
        return made[-1]

    yield make
    for watched in made:
        if watched.supervisor.spares is not None:
            await watched.supervisor.spares.close()
        await asyncio.gather(*(runner.stop(grace=2.0) for runner in watched.runners))
    assert list(sockets.iterdir()) == []
