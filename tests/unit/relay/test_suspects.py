"""Requests that may be the cause of their runners' deaths, and those beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from headrace.errors import RunnerCrashed
from headrace.v1.completion_pb2 import StreamCompletionRequest, StreamCompletionResponse
from headrace_server.relay import CompletionRecord, Terms
from headrace_server.relay.record import MAX_DEATHS, MAX_KILLS
from headrace_server.runners.lifecycle import State
from headrace_server.scheduling.state import Limits
from tests.unit.control.fakes import Context, FakeModel, FakeRunner, started
from tests.unit.relay.support import REQUEST, Stage, dying


async def test_two_deaths_before_the_first_event_are_unavailable_with_the_cause(
    stage: Stage,
) -> None:
    async def die(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        await runner.die("NATIVE_ABORT", delay=0.1)
        yield started()

    stage.set(die)
    error = await stage.fails(RunnerCrashed)
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert dict(error.metadata) == {"cause": "NATIVE_ABORT"}
    assert stage.events == []
    assert stage.idle()


async def test_the_tokens_of_all_choices_count_as_sent(stage: Stage) -> None:
    stage.set(dying(3, 0, choices=2))
    error = await stage.fails(RunnerCrashed, choices=2)
    assert error.code is grpc.StatusCode.ABORTED
    assert dict(error.metadata) == {"cause": "OUT_OF_MEMORY", "tokens_sent": "6"}


async def test_a_request_that_kills_its_runners_in_one_place_gets_no_third(stage: Stage) -> None:
    stage.set(dying(2, 3, 0, 0), max_crashes=99)
    error = await stage.fails(RunnerCrashed)
    # The second died as well, but further on.
    assert [runner.id for runner in stage.launcher.runners] == ["r1", "r2", "r3"]
    assert error.code is grpc.StatusCode.ABORTED
    assert dict(error.metadata) == {"cause": "OUT_OF_MEMORY", "tokens_sent": "5"}
    assert stage.idle()


async def test_those_beside_a_request_that_kills_are_not_taken_for_it(stage: Stage) -> None:
    """It dies of what it computes at once; they would have needed a moment longer."""
    arrived: list[str] = []
    five = asyncio.Event()

    async def script(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        if runner.id == "r1":
            arrived.append(request.prompt)
            if len(arrived) == 5:
                five.set()
            await five.wait()
        if request.prompt == "deadly":
            await runner.die("NATIVE_ABORT", delay=0.02)
        yield started()
        await asyncio.sleep(0.05 if runner.id == "r2" else 0)
        async for message in dying()(runner, request, context):
            if not message.HasField("started"):
                yield message

    stage.set(script, max_crashes=99)
    terms = Terms(FakeModel())

    async def stream(prompt: str) -> None:
        request = StreamCompletionRequest(model="fake", prompt=prompt, n=1)
        await stage.relay.stream(CompletionRecord, request.SerializeToString(), terms, stage.write)

    prompts = ["deadly", "a", "b", "c", "d"]
    deadly, *others = await asyncio.gather(*map(stream, prompts), return_exceptions=True)
    assert isinstance(deadly, RunnerCrashed)
    assert deadly.metadata["cause"] == "NATIVE_ABORT"
    assert others == [None] * 4
    assert len(stage.launcher.runners) <= 3
    assert stage.idle()


async def test_those_beside_a_request_that_hangs_are_not_taken_for_it(stage: Stage) -> None:
    """They wait until its second runner is seen to stall, though that takes long."""
    limit = 0.6
    arrived: list[str] = []
    four = asyncio.Event()

    def stall(runner: FakeRunner) -> None:
        runner.state = State.STALLED
        stage.scheduler.runner_changed()

    async def script(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        if runner.id == "r1":
            arrived.append(request.prompt)
            if len(arrived) == 4:
                four.set()
            await four.wait()
        if request.prompt == "hang":
            asyncio.get_running_loop().call_later(limit, stall, runner)
        if request.prompt == "hang" or runner.state is State.STALLED or runner.id == "r1":
            await asyncio.Event().wait()
        yield started()
        # Slower than the one that hangs, so that they would be lost with it.
        await asyncio.sleep(2 * limit if runner.id == "r2" else 0)
        async for message in dying()(runner, request, context):
            if not message.HasField("started"):
                yield message

    stage.set(script, max_crashes=99, stall_timeout=limit)
    terms = Terms(FakeModel())

    async def stream(prompt: str) -> None:
        request = StreamCompletionRequest(model="fake", prompt=prompt, n=1)
        await stage.relay.stream(CompletionRecord, request.SerializeToString(), terms, stage.write)

    hanging, *others = await asyncio.gather(
        *map(stream, ["hang", "a", "b", "c"]), return_exceptions=True
    )
    assert isinstance(hanging, RunnerCrashed)
    assert hanging.metadata["cause"] == "STALLED"
    assert others == [None] * 3
    assert stage.idle()


async def test_a_suspect_s_client_that_does_not_read_holds_nobody_up(stage: Stage) -> None:
    """It is told of the load that it waits for, in its turn; and has another when it reads."""
    both = asyncio.Barrier(2)
    blocked, read = asyncio.Event(), asyncio.Event()

    async def script(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        if runner.id == "r1":
            if await both.wait() == 0:
                await runner.die("NATIVE_ABORT")
            await asyncio.Event().wait()
        async for message in dying()(runner, request, context):
            yield message

    deaf: list[int] = []

    async def stream(number: int) -> None:
        async def write(data: bytes) -> None:
            message = StreamCompletionResponse.FromString(data)
            # Who hears of the second load has the first turn.
            second = len(stage.launcher.runners) == 2 and message.progress.HasField("load_fraction")
            if second and not deaf:
                deaf.append(number)
                blocked.set()
                await read.wait()

        await stage.relay.stream(CompletionRecord, REQUEST, Terms(FakeModel()), write)

    stage.set(script, hold=True, stall_timeout=0.1, heartbeat=0.01)
    streams = [asyncio.create_task(stream(number)) for number in range(2)]
    (await stage.launcher.launched.get()).loaded.set()
    await blocked.wait()
    (await stage.launcher.launched.get()).loaded.set()
    await asyncio.wait_for(streams[1 - deaf[0]], 5)
    assert not streams[deaf[0]].done()
    read.set()
    await asyncio.wait_for(streams[deaf[0]], 5)
    assert stage.idle()


async def test_before_a_token_was_sent_another_try_repeats_nothing(stage: Stage) -> None:
    stage.set(dying(0, 0))
    error = await stage.fails(RunnerCrashed)
    assert stage.events == ["started"]
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert dict(error.metadata) == {"cause": "OUT_OF_MEMORY"}


@pytest.mark.parametrize(
    ("perhaps_memory", "runners", "why"),
    [
        (False, MAX_KILLS, f"as were {MAX_KILLS - 1} before it"),
        (True, MAX_DEATHS, "may be the cause"),
    ],
)
async def test_a_kill_is_from_outside_only_where_it_cannot_be_one_for_memory(
    stage: Stage, perhaps_memory: bool, runners: int, why: str
) -> None:
    async def script(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        await runner.die("SIGNAL", perhaps_memory=perhaps_memory)
        yield started()

    stage.set(script, max_crashes=99)
    stage.scheduler.set_limits(Limits(100, backoff=0.0, max_crashes=99))
    error = await stage.fails(RunnerCrashed)
    assert why in error.message
    assert len(stage.launcher.runners) == runners
