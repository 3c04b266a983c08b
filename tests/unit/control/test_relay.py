"""One stream through the relay, where a runner does what real ones do only by accident."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from headrace.errors import (
    Cancelled,
    ContextLengthExceeded,
    DeadlineExceeded,
    Draining,
    HeadraceError,
    LoadFailed,
    RunnerCrashed,
)
from headrace.v1.completion_pb2 import StreamCompletionRequest, StreamCompletionResponse
from headrace_server.relay import Relay, Terms
from headrace_server.relay.record import MAX_DEATHS, MAX_KILLS, OutOfStepError
from headrace_server.runners.lifecycle import State
from headrace_server.scheduling.shell import Scheduler
from headrace_server.scheduling.state import Limits
from tests.unit.control.fakes import (
    Context,
    FakeLauncher,
    FakeModel,
    FakeRunner,
    Script,
    completed,
    delta,
    started,
)

REQUEST = StreamCompletionRequest(model="fake", prompt="hello").SerializeToString()


class Stage:
    """A scheduler, a relay, and what the client was sent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._news = asyncio.Event()
        self.sent: list[StreamCompletionResponse] = []
        self.unloading: list[asyncio.Task[int]] = []
        self.launcher: FakeLauncher
        self.scheduler: Scheduler
        self.relay: Relay

    def set(
        self, script: Script, *, hold: bool = False, max_crashes: int = 3, **relay: float
    ) -> None:
        self.launcher = FakeLauncher(self._folder, script, hold)
        limits = Limits(100, backoff=0.001, max_crashes=max_crashes)
        self.scheduler = Scheduler(limits, self.launcher)
        self.relay = Relay(self.scheduler, **{"max_time": 20.0, "diagnosis": 2.0, **relay})

    async def write(self, data: bytes) -> None:
        self.sent.append(StreamCompletionResponse.FromString(data))
        self._news.set()

    async def stream(self, time_remaining: float | None = None) -> None:
        terms = Terms(FakeModel(), time_remaining=time_remaining)
        await self.relay.stream(REQUEST, terms, self.write)

    async def fails(self, kind: type[HeadraceError], **more: Any) -> HeadraceError:
        with pytest.raises(kind) as caught:
            await self.stream(**more)
        return caught.value

    @property
    def events(self) -> list[str]:
        """What came, without what the wait brought."""
        events = [message.WhichOneof("event") or "" for message in self.sent]
        return [event for event in events if event != "progress"]

    @property
    def runner(self) -> FakeRunner:
        return self.launcher.runners[-1]

    def idle(self) -> bool:
        return not self.scheduler.in_use(FakeModel().key)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until it is so after some message to the client."""
        async with asyncio.timeout(5):
            while not true():
                self._news.clear()
                await self._news.wait()


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    await stage.scheduler.close()


async def answer(
    runner: FakeRunner, request: StreamCompletionRequest, context: Context
) -> AsyncIterator[StreamCompletionResponse]:
    for message in (started(), delta(1), delta(2), completed()):
        yield message


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


def dying(*lives: int, choices: int = 1, length: int = 12) -> Script:
    """Runners of which each sends so many tokens of each choice before it dies; the last ones,
    for which there is no number, send all. They go on where they are told to."""

    async def script(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        sent = {choice.index: len(choice.token_ids) for choice in request.resume_choices}
        number = int(runner.id[1:]) - 1
        dies = number < len(lives)
        yield started()
        for token in range(length):
            for choice in range(choices):
                done = sent.get(choice, 0)
                if done <= token and not (dies and token - done >= lives[number]):
                    yield delta(token + 1, choice)
        if dies:
            await runner.die("OUT_OF_MEMORY", delay=0.02)
        yield completed()

    return script


@pytest.mark.parametrize("choices", [1, 3])
async def test_c1_a_stream_that_advances_outlives_any_number_of_runners(
    stage: Stage, choices: int
) -> None:
    stage.set(dying(4, 1, 2, 1, 1, choices=choices), max_crashes=99)
    await stage.stream()
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


async def test_the_tokens_of_all_choices_count_as_sent(stage: Stage) -> None:
    stage.set(dying(3, 0, choices=2))
    error = await stage.fails(RunnerCrashed)
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
        await stage.relay.stream(request.SerializeToString(), terms, stage.write)

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
        await stage.relay.stream(request.SerializeToString(), terms, stage.write)

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

        await stage.relay.stream(REQUEST, Terms(FakeModel()), write)

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


async def test_a_stream_for_which_there_is_no_other_runner_is_aborted(stage: Stage) -> None:
    async def die_in_a_drain(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        yield started()
        yield delta(1)
        yield delta(2)
        stage.scheduler.drain()
        await runner.die("OUT_OF_MEMORY", delay=0.02)

    stage.set(die_in_a_drain)
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


async def endless(
    runner: FakeRunner, request: StreamCompletionRequest, context: Context
) -> AsyncIterator[StreamCompletionResponse]:
    yield started()
    await asyncio.Event().wait()


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
