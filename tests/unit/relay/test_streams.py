"""One stream through the relay: what passes, what ends it, and who leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from headrace.errors import Cancelled, ContextLengthExceeded, DeadlineExceeded, Draining, LoadFailed
from headrace.v1.completion_pb2 import StreamCompletionRequest, StreamCompletionResponse
from headrace_server import measures
from headrace_server.measures import Output
from headrace_server.relay import Terms
from tests.unit.control.fakes import Context, FakeModel, FakeRunner, completed, delta, started
from tests.unit.relay.support import REQUEST, Stage, answer, endless


async def test_a_stream_passes_whole_and_completed_tells_the_controller_s_time(
    stage: Stage,
) -> None:
    stage.set(answer)
    await stage.stream()
    assert stage.events == ["started", "delta", "delta", "completed"]
    timings = stage.sent[-1].completed.timings
    assert timings.queue.ToMilliseconds() >= 250
    assert timings.load.ToNanoseconds() > 0
    assert timings.total.ToNanoseconds() >= timings.load.ToNanoseconds()
    assert stage.runner.requests == [REQUEST]
    assert stage.runner.calls[0]["headrace-digest"] == FakeModel().digest
    assert stage.idle()


async def test_the_runner_is_told_of_the_trace(stage: Stage) -> None:
    stage.set(answer)
    caller = SpanContext(0xABC, 0xDEF, is_remote=True)
    with trace.use_span(NonRecordingSpan(caller)):
        await stage.stream()
    assert stage.runner.calls[0]["traceparent"].split("-")[1] == f"{0xABC:032x}"


async def test_who_waits_hears_of_the_load_and_gets_a_heartbeat(stage: Stage) -> None:
    stage.set(answer, hold=True, heartbeat=0.02)
    streaming = asyncio.create_task(stage.stream())
    await stage.until(lambda: len(stage.sent) >= 4)
    stage.runner.fraction = 0.5
    stage.scheduler.runner_changed()
    await stage.until(lambda: stage.sent[-1].progress.load_fraction == 0.5)
    stage.runner.loaded.set()
    await streaming
    assert stage.events == ["started", "delta", "delta", "completed"]


async def test_a_runner_s_own_error_passes_unchanged(stage: Stage) -> None:
    async def refuse(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        if request.prompt:
            raise ContextLengthExceeded(limit=10, actual=11)
        yield started()

    stage.set(refuse)
    error = await stage.fails(ContextLengthExceeded)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.message == ContextLengthExceeded(limit=10, actual=11).message
    assert dict(error.metadata) == {"limit": "10", "actual": "11"}
    assert len(stage.launcher.runners) == 1


async def test_a_stream_that_the_runner_cancelled_is_cancelled_not_lost(stage: Stage) -> None:
    async def abort(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        yield started()
        await context.abort(grpc.StatusCode.CANCELLED, "aborted by its id")

    # Not after a wait for the runner's end, which will not come.
    stage.set(abort, diagnosis=60.0)
    error = await stage.fails(Cancelled)
    assert error.message == "aborted by its id"


async def test_an_end_without_completed_is_no_success(stage: Stage) -> None:
    async def stop_short(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        yield started()
        yield delta(1)

    stage.set(stop_short)
    with pytest.raises(RuntimeError, match="without `completed`"):
        await stage.stream()
    assert stage.idle()


async def test_a_death_after_completed_changes_nothing(stage: Stage) -> None:
    async def die_at_the_end(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        async for message in answer(runner, request, context):
            yield message
        await stage.until(lambda: stage.events[-1:] == ["completed"])
        await runner.die()

    stage.set(die_at_the_end)
    await stage.stream()
    assert stage.events[-1] == "completed"


async def test_b1_a_cancelled_client_is_heard_of_by_the_runner_at_once(stage: Stage) -> None:
    stage.set(endless)
    streaming = asyncio.create_task(stage.stream())
    await stage.until(lambda: stage.events == ["started"])
    streaming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await streaming
    assert stage.idle()
    await asyncio.wait_for(stage.runner.cancelled.wait(), 2)


async def test_a2_a_client_that_leaves_while_it_waits_gives_its_place_back(stage: Stage) -> None:
    stage.set(answer, hold=True)
    streaming = asyncio.create_task(stage.stream())
    await stage.launcher.launched.get()
    streaming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await streaming
    assert stage.idle()


async def test_a3_the_other_caller_still_gets_its_answer(stage: Stage) -> None:
    stage.set(answer, hold=True)
    first, second = (asyncio.create_task(stage.stream()) for _ in range(2))
    runner = await stage.launcher.launched.get()
    first.cancel()
    runner.loaded.set()
    await second
    assert stage.events == ["started", "delta", "delta", "completed"]
    assert len(stage.launcher.runners) == 1


@pytest.mark.parametrize("hold", [True, False])
async def test_time_runs_out_with_and_without_a_client_s_deadline(stage: Stage, hold: bool) -> None:
    stage.set(endless, hold=hold, max_time=0.2)
    await stage.fails(DeadlineExceeded)
    assert stage.idle()
    await stage.fails(DeadlineExceeded, time_remaining=0.1)
    assert stage.idle()


async def test_at_the_end_every_stream_is_told(stage: Stage) -> None:
    stage.set(endless)
    streaming = asyncio.create_task(stage.fails(Draining))
    await stage.until(lambda: stage.events == ["started"])
    stage.relay.end()
    await streaming
    assert stage.idle()


async def test_the_end_also_reaches_a_stream_whose_time_runs_out_in_that_moment(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.set(endless, max_time=0.2)

    async def write(_: bytes) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stage.relay.end()
            raise

    monkeypatch.setattr(stage, "write", write)
    await stage.fails(Draining)


async def test_c8_a_load_that_crashes_each_time_is_retried_then_told(stage: Stage) -> None:
    stage.set(answer, hold=True)

    async def crash_all() -> None:
        for _ in range(3):
            runner = await stage.launcher.launched.get()
            await runner.die("NATIVE_ABORT")

    crashing = asyncio.create_task(crash_all())
    error = await stage.fails(LoadFailed)
    assert error.metadata["cause"] == "NATIVE_ABORT"
    assert "the runner was killed" in error.message
    await crashing


async def test_a_launch_that_fails_is_told_and_a_bug_in_it_strands_nobody(stage: Stage) -> None:
    stage.set(answer)

    async def damaged() -> None:
        raise LoadFailed("no MLX here", cause="LOAD_FAILED")

    stage.launcher.before = damaged
    assert (await stage.fails(LoadFailed)).message == "no MLX here"

    async def bug() -> None:
        raise ZeroDivisionError

    stage.launcher.before = bug
    assert (await stage.fails(LoadFailed)).metadata["cause"] == "EXITED"


async def test_a_call_that_is_no_stream_is_no_evidence_that_a_model_gets_things_done(
    stage: Stage,
) -> None:
    async def once(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        yield completed()

    stage.set(once)
    method = "/headrace.v1.CompletionService/StreamCompletion"
    response = await stage.relay.unary(method, REQUEST, Terms(FakeModel()))
    assert StreamCompletionResponse.FromString(response).HasField("completed")
    ((slot, life),) = stage.scheduler.runners()
    assert (slot.advanced, life.advanced) == (False, False)


async def test_a_call_that_the_model_computes_is_evidence_and_is_measured(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def once(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        if request.prompt:
            if runner.requests[1:]:
                raise ContextLengthExceeded(limit=10, actual=11)
            yield completed()

    measured: list[tuple[str, Output]] = []
    monkeypatch.setattr(
        measures, "ended", lambda *_, error, output, **__: measured.append((error, output))
    )
    stage.set(once)
    method = "/headrace.v1.CompletionService/StreamCompletion"

    def read(data: bytes) -> Output:
        usage = StreamCompletionResponse.FromString(data).completed.usage
        return Output(prompt_tokens=usage.prompt_tokens)

    response = await stage.relay.unary(method, REQUEST, Terms(FakeModel()), read)
    ((slot, life),) = stage.scheduler.runners()
    assert (slot.advanced, life.advanced) == (True, True)
    with pytest.raises(ContextLengthExceeded):
        await stage.relay.unary(method, REQUEST, Terms(FakeModel()), read)
    assert measured == [("", read(response)), ("CONTEXT_LENGTH_EXCEEDED", Output())]
