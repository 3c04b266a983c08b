"""One real child process: how it starts, ends, and is explained."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import psutil
import pytest

from headrace.host.handover import Listening, Report
from headrace_server.runners.process import OnReport, RunnerProcess
from headrace_server.runners.spec import RunnerSpec
from tests.integration.runners.support import Command

Start = Callable[..., Awaitable[RunnerProcess]]


@pytest.fixture
def start(
    spec: RunnerSpec,
    environment: dict[str, str],
    sockets: Path,
    command: Command,
) -> Start:
    async def _start(mode: str, on_report: OnReport = lambda _: None) -> RunnerProcess:
        return await RunnerProcess.start(spec, environment, on_report, command(mode))

    return _start


async def listening(start: Start, mode: str) -> tuple[RunnerProcess, Listening]:
    heard: asyncio.Future[Listening] = asyncio.get_running_loop().create_future()

    def on_report(report: Report | None) -> None:
        if isinstance(report, Listening):
            heard.set_result(report)

    process = await start(mode, on_report)
    return process, await asyncio.wait_for(heard, 30)


async def test_it_listens_in_a_private_folder_and_leaves_nothing(
    start: Start, sockets: Path
) -> None:
    process, report = await listening(start, "serve")
    socket = Path(report.address.removeprefix("unix:"))
    assert report.pid == process.pid
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    death = await process.stop(grace=10.0)
    assert (death.cause, death.returncode, death.expected) == ("EXITED", 0, True)
    assert list(sockets.iterdir()) == []
    assert not psutil.pid_exists(process.pid)  # reaped, not a zombie


async def test_sigkill_from_outside(start: Start) -> None:
    process, _ = await listening(start, "serve")
    os.kill(process.pid, signal.SIGKILL)
    death = await process.dead
    assert (death.cause, death.returncode, death.expected) == ("SIGNAL", -signal.SIGKILL, False)


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(start: Start) -> None:
    process, _ = await listening(start, "stubborn")
    began = time.monotonic()
    death = await process.stop(grace=0.3)
    assert 0.3 <= time.monotonic() - began < 5
    assert (death.returncode, death.expected) == (-signal.SIGKILL, True)


async def test_a_cancelled_stop_still_kills(start: Start) -> None:
    process, _ = await listening(start, "stubborn")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.stop(grace=0.3), 0.1)
    death = await asyncio.wait_for(asyncio.shield(process.dead), 10)
    assert death.returncode == -signal.SIGKILL


async def test_a_stopped_process_is_killed_after_the_grace(start: Start) -> None:
    process, _ = await listening(start, "serve")
    os.kill(process.pid, signal.SIGSTOP)
    assert (await process.stop(grace=0.2)).returncode == -signal.SIGKILL


async def test_c4_ten_megabytes_without_a_newline_then_abort(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    process = await start("long-line")
    death = await asyncio.wait_for(asyncio.shield(process.dead), 60)
    assert (death.cause, death.returncode) == ("NATIVE_ABORT", -signal.SIGABRT)
    assert "libc++abi: terminating" in death.detail
    assert sum(len(record.getMessage()) for record in caplog.records) > 10_000_000


async def test_what_it_printed_last_names_the_cause(start: Start) -> None:
    death = await (await start("out-of-memory")).dead
    assert (death.cause, death.returncode) == ("OUT_OF_MEMORY", -signal.SIGABRT)


async def test_what_it_reported_names_the_cause(start: Start) -> None:
    death = await (await start("fail")).dead
    assert (death.cause, death.file) == ("MODEL_CORRUPT", "model.safetensors")
    assert death.message == "model.safetensors is cut short"


async def test_bad_reports_do_not_hide_good_ones(start: Start) -> None:
    death = await (await start("garbage")).dead
    assert (death.cause, death.message) == ("UNSUPPORTED_MODEL", "no such architecture")


async def test_a_traceback_is_kept_for_the_operator(start: Start) -> None:
    death = await (await start("raise")).dead
    assert (death.cause, death.returncode) == ("EXITED", 1)
    assert "RuntimeError: broken on purpose" in death.detail
    assert "broken on purpose" not in death.message


async def test_a_grandchild_that_holds_the_pipes_does_not_delay_the_end(start: Start) -> None:
    process = await start("grandchild")
    death = await asyncio.wait_for(asyncio.shield(process.dead), 10)
    os.kill(int(death.detail.strip()), signal.SIGKILL)
    assert death.returncode == 3


async def test_log_lines_are_re_emitted_at_their_level(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    death = await (await start("print")).dead
    assert death.returncode == 0
    record = next(record for record in caplog.records if record.getMessage() == "hello")
    assert (record.levelname, record.name) == ("ERROR", "child")
    fields = vars(record)
    assert (fields["runner_id"], fields["model"], fields["trace_id"]) == ("r1", "tiny", "ab" * 16)
    assert "child" not in logging.Logger.manager.loggerDict
    assert death.detail == "plain text"


async def test_a_program_that_is_not_there(
    spec: RunnerSpec, environment: Mapping[str, str], sockets: Path
) -> None:
    with pytest.raises(OSError, match="no-such-program"):
        await RunnerProcess.start(spec, environment, lambda _: None, ("/no-such-program",))
    assert list(sockets.iterdir()) == []


async def test_c5_a_killed_controller_leaves_no_runner(
    spec: RunnerSpec, environment: dict[str, str], sockets: Path, command: Command
) -> None:
    controller = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _CONTROLLER, repr(command("silent"))),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    assert controller.stdout is not None
    runner = psutil.Process(int(await asyncio.wait_for(controller.stdout.readline(), 30)))
    controller.kill()
    await controller.wait()
    # Longer than a real runner may take: the stand-in hears of it only once its imports are done.
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [runner], timeout=15.0)
    assert gone


_CONTROLLER = """
import ast, asyncio, os, pathlib, sys
from headrace_server.runners.process import RunnerProcess
from headrace_server.runners.spec import RunnerSpec

async def main():
    spec = RunnerSpec(id="r", model="m", digest="d", model_dir=pathlib.Path("."))
    command = ast.literal_eval(sys.argv[1])
    process = await RunnerProcess.start(spec, os.environ, lambda _: None, command)
    print(process.pid, flush=True)
    await process.dead

asyncio.run(main())
"""
