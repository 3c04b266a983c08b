"""The watch over a runner, for what no real process can be made to do at will."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import grpc.aio
import pytest

from headrace.host.handover import Listening, Loading
from headrace_server.runners.diagnosis import Death, Verdict
from headrace_server.runners.lifecycle import Limits
from headrace_server.runners.oom import OomKills
from headrace_server.runners.process import OnReport, RunnerProcess
from headrace_server.runners.spec import RunnerSpec
from headrace_server.runners.supervisor import RunningRunner

SPEC = RunnerSpec(id="r1", model="m", digest="d", model_dir=Path())


class Process:
    """Stands in for a runner process. It dies of a kill, with its verdict."""

    pid = 4711

    def __init__(self) -> None:
        self.dead: asyncio.Future[Death] = asyncio.get_running_loop().create_future()

    def kill(self, verdict: Verdict) -> None:
        self.dead.set_result(Death(verdict.cause, verdict.reason))

    async def stop(self, grace: float) -> Death:
        if not self.dead.done():
            self.dead.set_result(Death("EXITED", "it was stopped", expected=True))
        return await self.dead


class Start:
    """Starts a process when the test says so."""

    def __init__(self) -> None:
        self.may_start = asyncio.Event()
        self.report: asyncio.Future[OnReport] = asyncio.get_running_loop().create_future()

    async def __call__(self, spec: RunnerSpec, on_report: OnReport) -> RunnerProcess:
        await self.may_start.wait()
        self.report.set_result(on_report)
        return cast("RunnerProcess", Process())


async def test_a_start_slower_than_its_limit_is_killed_once_there_is_a_process() -> None:
    start = Start()
    runner = RunningRunner(
        SPEC,
        start,
        connect=grpc.aio.insecure_channel,
        limits=Limits(start=0.0),
        oom_kills=OomKills(lambda: 0),
        on_change=lambda _: None,
        on_span=None,
    )
    # Timers go off in the order of their times, however late.
    asyncio.get_running_loop().call_later(0.01, start.may_start.set)
    async with asyncio.timeout(10):
        death = await asyncio.shield(runner.dead)
    assert (death.cause, death.message) == ("STALLED", "it did not report an address in time")


async def test_a_bug_of_who_is_told_does_not_end_the_watch(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def broken(_: RunningRunner) -> None:
        raise KeyError("broken on purpose")

    start = Start()
    runner = RunningRunner(
        SPEC,
        start,
        connect=grpc.aio.insecure_channel,
        limits=Limits(load=0.0),
        oom_kills=OomKills(lambda: 0),
        on_change=broken,
        on_span=None,
    )
    start.may_start.set()
    async with asyncio.timeout(10):
        report = await start.report
        report(Listening(f"unix:{tmp_path}/none.sock", 4711, "d"))
        report(Loading(0.5))
        # It goes on to be held to its deadlines.
        death = await asyncio.shield(runner.dead)
    assert (death.cause, death.message) == ("STALLED", "its load made no progress")
    assert "broken on purpose" in caplog.text
