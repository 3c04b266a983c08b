"""The controller as a process: start, signals, end. Without a model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from headrace.v1.model_pb2 import ListModelsRequest
from headrace.v1.model_pb2_grpc import ModelServiceStub
from tests.unit.control.fakes import put_manifest

Start = Callable[..., Awaitable[tuple[asyncio.subprocess.Process, str]]]


@pytest_asyncio.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a controller; gives it and the line it writes when it listens ("" if it ended)."""
    processes: list[asyncio.subprocess.Process] = []

    async def start(*arguments: str) -> tuple[asyncio.subprocess.Process, str]:
        read, write = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "headrace_server"),
                *("--home", str(tmp_path), "--ready-fd", str(write), *arguments),
                pass_fds=(write,),
                stdin=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        finally:
            os.close(write)
        processes.append(process)
        with open(read, "rb") as pipe:  # noqa: PTH123  # a descriptor
            line = await asyncio.wait_for(asyncio.to_thread(pipe.readline), 20)
        return process, line.decode()

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def call(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        await ModelServiceStub(channel).ListModels(ListModelsRequest(), timeout=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_c6_it_says_when_it_listens_and_leaves_nothing_behind(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "c.sock"
    process, line = await start("--listen", f"unix:{path}")
    assert json.loads(line) == {"event": "listening", "address": f"unix:{path}"}
    assert path.stat().st_mode & 0o777 == 0o600
    await call(f"unix:{path}")
    process.send_signal(number)
    assert await asyncio.wait_for(process.wait(), 10) == 0
    assert not path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the policies are Linux's")
async def test_no_thread_of_it_takes_a_core_from_one_that_computes(
    start: Start, tmp_path: Path
) -> None:
    process, _ = await start("--listen", f"unix:{tmp_path}/c.sock")
    await call(f"unix:{tmp_path}/c.sock")
    threads = [int(thread.name) for thread in Path(f"/proc/{process.pid}/task").iterdir()]
    assert len(threads) > 1
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}


async def test_a_private_controller_ends_with_its_parent(start: Start, tmp_path: Path) -> None:
    process, _ = await start("--listen", f"unix:{tmp_path}/c.sock", "--parent", "stdin")
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_a_free_port_is_reported_and_a_taken_one_is_an_error(start: Start) -> None:
    _, line = await start("--listen", "127.0.0.1:0")
    address = json.loads(line)["address"]
    await call(address)
    second, line = await start("--listen", address)
    _, stderr = await second.communicate()
    assert (second.returncode, line) == (1, "")
    assert b"cannot listen on" in stderr
    assert b"Traceback" not in stderr
    await call(address)


async def test_a_socket_is_taken_over_from_the_dead_and_not_from_the_living(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    _, line = await start("--listen", f"unix:{path}")
    assert line
    second, line = await start("--listen", f"unix:{path}")
    assert line == ""
    assert await second.wait() == 1
    await call(f"unix:{path}")


async def test_an_unknown_preload_is_a_warning(start: Start, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/c.sock"
    process, line = await start("--listen", address, "--preload", "nobody")
    assert line
    await call(address)
    process.terminate()
    _, stderr = await process.communicate()
    assert process.returncode == 0
    assert b"not preloaded" in stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_it_stays_small_and_imports_no_mlx(start: Start, tmp_path: Path) -> None:
    put_manifest(tmp_path, "words", "text")
    process, _ = await start("--listen", f"unix:{tmp_path}/c.sock")
    # The model's estimate waits for the look at the machine, which takes memory for a moment.
    await call(f"unix:{tmp_path}/c.sock")
    status = Path(f"/proc/{process.pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    assert int(resident.split()[1]) < 80_000
    assert "mlx" not in Path(f"/proc/{process.pid}/maps").read_text()
