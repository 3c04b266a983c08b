"""A stream that loses its runner, and goes on at another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from headrace.errors import Draining, RunnerCrashed
from headrace.v1.completion_pb2 import StreamCompletionRequest, StreamCompletionResponse
from headrace_server.relay import CompletionRecord, Terms
from headrace_server.relay.record import OutOfStepError
from headrace_server.runners.lifecycle import State
from headrace_server.scheduling.state import Limits
from tests.unit.control.fakes import Context, FakeModel, FakeRunner, completed, delta, started
from tests.unit.relay.support import REQUEST, Stage, answer, dying


async def test_c2_a_death_before_the_first_event_is_made_up_for(stage: Stage) -> None:
    async def die_once(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        if runner.id == "r1":
            await runner.die(delay=0.1)
        async for message in answer(runner, request, context):
            yield message

    stage.set(die_once)
    await stage.stream()
    assert stage.events == ["started", "delta", "delta", "completed"]
    assert [runner.id for runner in stage.launcher.runners] == ["r1", "r2"]


async def test_a_runner_that_gave_a_token_got_something_done_however_late_it_is_read(
    stage: Stage,
) -> None:
    deaths = 6
    stage.set(dying(*[1] * deaths), max_crashes=3)

    async def write(data: bytes) -> None:
        await stage.write(data)
        if 0 < stage.sent[-1].delta.output_tokens <= deaths:
            ((_, life),) = stage.scheduler.runners_of(stage.model.key)
            async with asyncio.timeout(5):
                await life.gone.wait()

    await stage.relay.stream(CompletionRecord, REQUEST, Terms(stage.model), write)
    assert stage.events == ["started", *["delta"] * 12, "completed"]
    assert stage.sent[-1].completed.resumed == deaths


@pytest.mark.parametrize("choices", [1, 3])
async def test_c1_a_stream_that_advances_outlives_any_number_of_runners(
    stage: Stage, choices: int
) -> None:
    stage.set(dying(4, 1, 2, 1, 1, choices=choices), max_crashes=99)
    await stage.stream(choices=choices)
    assert stage.events == ["started", *["delta"] * 12 * choices, "completed"]
    for choice in range(choices):
        deltas = [m.delta for m in stage.sent if m.HasField("delta") and m.delta.choice == choice]
        assert [token for each in deltas for token in each.token_ids] == list(range(12))
        assert [each.output_tokens for each in deltas] == list(range(1, 13))
    assert stage.sent[-1].completed.resumed == 5
    last = StreamCompletionRequest.FromString(stage.runner.requests[0])
    assert [list(choice.token_ids) for choice in last.resume_choices] == [list(range(9))] * choices
    assert (last.request_id, last.sampling.seed) == ("x", 77)
    assert stage.idle()


async def test_a_stream_for_which_there_is_no_other_runner_is_aborted(stage: Stage) -> None:
    async def die_without_room(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        yield started()
        yield delta(1)
        yield delta(2)
        stage.scheduler.set_limits(Limits(FakeModel().needs - 1))
        await runner.die("OUT_OF_MEMORY", delay=0.02)

    stage.set(die_without_room)
    error = await stage.fails(RunnerCrashed)
    assert error.code is grpc.StatusCode.ABORTED
    assert dict(error.metadata) == {"cause": "OUT_OF_MEMORY", "tokens_sent": "2"}
    assert "no other could go on" in error.message


async def test_c3_a_stalled_runner_s_streams_move_at_once(stage: Stage) -> None:
    woken: list[str] = []

    async def hang(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        if runner.id != "r1":
            async for message in dying()(runner, request, context):
                yield message
            return
        yield started()
        yield delta(1)
        try:
            await asyncio.Event().wait()
        finally:
            woken.append(runner.id)

    stage.set(hang)
    streaming = asyncio.create_task(stage.stream())
    await stage.until(lambda: stage.events == ["started", "delta"])
    stage.runner.state = State.STALLED
    stage.scheduler.runner_changed()
    await streaming
    assert stage.events == ["started", *["delta"] * 12, "completed"]
    assert [m.delta.output_tokens for m in stage.sent if m.HasField("delta")] == [*range(1, 13)]
    assert stage.sent[-1].completed.resumed == 1
    assert woken == ["r1"]  # Its call had been cancelled.


async def test_c3_a_stream_moves_from_a_runner_that_had_stalled_for_a_moment(stage: Stage) -> None:
    async def hang_once(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        if len(runner.requests) > 1:
            async for message in dying()(runner, request, context):
                yield message
            return
        yield started()
        yield delta(1)
        await asyncio.Event().wait()

    # It lives on, so that a wait for its end would last as long as this.
    stage.set(hang_once, diagnosis=60.0)
    streaming = asyncio.create_task(stage.stream())
    await stage.until(lambda: stage.events == ["started", "delta"])
    for state in (State.STALLED, State.SERVING):
        stage.runner.state = state
        stage.scheduler.runner_changed()
    await streaming
    assert stage.events == ["started", *["delta"] * 12, "completed"]
    assert [runner.id for runner in stage.launcher.runners] == ["r1"]


async def test_a_stream_moves_from_a_runner_that_is_being_stopped(stage: Stage) -> None:
    async def drain(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        if runner.id in ("r1", "r2"):
            if runner.id == "r1":
                yield started()
                yield delta(1)
            stage.unloading.append(asyncio.create_task(stage.scheduler.unload(FakeModel().key)))
            await asyncio.sleep(0)
            raise Draining(1.0)
        async for message in dying()(runner, request, context):
            yield message

    # Twice without a token between: but nobody died.
    stage.set(drain, diagnosis=60.0)
    await stage.stream()
    assert stage.events == ["started", *["delta"] * 12, "completed"]
    assert stage.sent[-1].completed.resumed == 2
    await asyncio.gather(*stage.unloading)


async def test_a_stream_may_end_on_a_runner_that_drains_and_the_next_gets_another(
    stage: Stage,
) -> None:
    go_on = asyncio.Event()

    async def script(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        async for message in answer(runner, request, context):
            yield message
            if runner.id == "r1":
                await go_on.wait()

    stage.set(script)
    streaming = asyncio.create_task(stage.stream())
    await stage.until(lambda: stage.events == ["started"])
    first = stage.runner
    first.state = State.DRAINING
    stage.scheduler.runner_changed()
    another = asyncio.create_task(stage.stream())
    await stage.until(lambda: stage.sent[-1].HasField("progress"))
    go_on.set()
    await asyncio.gather(streaming, another)
    ends = [message.completed.resumed for message in stage.sent if message.HasField("completed")]
    assert ends == [0, 0]
    assert [len(runner.requests) for runner in stage.launcher.runners] == [1, 1]
    assert first.dead.done()  # It went with its last stream.


async def test_a_runner_that_does_not_go_on_in_its_place_is_not_believed(stage: Stage) -> None:
    async def begin_anew(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        yield started()
        yield delta(1)
        if runner.id == "r1":
            await stage.until(lambda: "delta" in stage.events)
            await runner.die()
        yield completed()

    stage.set(begin_anew)
    with pytest.raises(OutOfStepError):
        await stage.stream()
    assert stage.events == ["started", "delta"]


async def test_a_runner_that_is_lost_but_not_dead_is_stalled(stage: Stage) -> None:
    async def vanish(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        yield started()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    stage.set(vanish, diagnosis=0.05)
    error = await stage.fails(RunnerCrashed)
    assert error.metadata["cause"] == "STALLED"
