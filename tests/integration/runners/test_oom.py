"""A runner that the kernel kills for lack of memory, in a control group with little of it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.runners.support import Command

LIMIT = 256 << 20
"""Bytes: enough for a controller and a start, not for one that takes all it can get."""

CONTROLLER = """
import ast, asyncio, os, pathlib, sys
pathlib.Path(sys.argv[2], "cgroup.procs").write_text(str(os.getpid()))
from headrace_server.runners.process import RunnerProcess
from headrace_server.runners.spec import RunnerSpec

async def main():
    spec = RunnerSpec(id="r", model="m", digest="d", model_dir=pathlib.Path("."))
    command = ast.literal_eval(sys.argv[1])
    process = await RunnerProcess.start(spec, os.environ, lambda _: None, command)
    death = await process.dead
    print(death.cause, death.returncode, death.message, sep="|")

asyncio.run(main())
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group below this process's own, where the system allows one."""
    if (folder := _make_group()) is None:
        pytest.skip("makes a control group with a limit of memory, which needs the right to")
    yield folder
    folder.rmdir()


def _make_group() -> Path | None:
    root = Path("/sys/fs/cgroup")
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        folder = root / controllers / path.lstrip("/") / f"headrace-test-{os.getpid()}"
        with suppress(OSError):
            folder.mkdir()
            for name in ("memory.max", "memory.limit_in_bytes"):
                with suppress(OSError):
                    # Not created where the kernel has no such file.
                    with (folder / name).open("r+") as file:
                        file.write(str(LIMIT))
                    return folder
            folder.rmdir()
    return None


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


async def test_the_kernels_own_count_tells_it_from_another_kill(
    group: Path, environment: dict[str, str], sockets: Path, command: Command
) -> None:
    controller = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CONTROLLER, repr(command("glutton")), str(group)),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    output, _ = await asyncio.wait_for(controller.communicate(), 60)
    cause, returncode, message = output.decode().strip().split("|")
    assert (cause, returncode) == ("OUT_OF_MEMORY", "-9")
    assert "memory" in message
