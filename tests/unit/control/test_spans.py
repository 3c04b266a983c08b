"""The spans of waits, loads and attempts, with runners that are fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.context import Context as TraceContext
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from headrace.errors import CircuitOpen, LoadFailed, QueueFull
from headrace.v1.completion_pb2 import StreamCompletionRequest, StreamCompletionResponse
from headrace_server.relay import spans as relay_spans
from headrace_server.relay.record import Record
from headrace_server.runners.diagnosis import Death
from headrace_server.scheduling import loading
from headrace_server.scheduling import ticket as tickets
from headrace_server.scheduling.loading import Load
from headrace_server.scheduling.state import Limits, Policy
from tests.tracing import spans_of
from tests.unit.control.fakes import (
    Context,
    FakeModel,
    FakeRunner,
    completed,
    delta,
    started,
)
from tests.unit.relay.support import Stage, answer


class Traced(Stage):
    """A stage whose requests each have a span of their own above them."""

    def __init__(self, folder: Path, exporter: InMemorySpanExporter, tracer: trace.Tracer) -> None:
        super().__init__(folder)
        self._exporter = exporter
        self._tracer = tracer

    async def request(self, name: str) -> None:
        with self._tracer.start_as_current_span(name, TraceContext()):
            await self.stream()

    def all(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def the(self, name: str) -> ReadableSpan:
        (span,) = self.all(name)
        return span

    def below(self, name: str) -> list[str]:
        """The names of what hangs from the one span of a name."""
        parent = self.the(name).context
        assert parent is not None
        return [
            span.name.rpartition("/")[2]
            for span in self._exporter.get_finished_spans()
            if span.parent is not None and span.parent.span_id == parent.span_id
        ]


@pytest_asyncio.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Traced]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("t")
    for module in (relay_spans, loading, tickets):
        monkeypatch.setattr(module, "_tracer", tracer)
    stage = Traced(tmp_path, exporter, tracer)
    yield stage
    await stage.scheduler.close()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    span_id: int = span.context.span_id
    return span_id


async def test_a_load_is_of_the_request_that_it_is_for_and_others_refer_to_it(
    stage: Traced,
) -> None:
    stage.set(answer, hold=True)
    first = asyncio.create_task(stage.request("first"))
    runner = await stage.launcher.launched.get()
    second = asyncio.create_task(stage.request("second"))
    await stage.until(lambda: len(stage.sent) >= 2)
    runner.loaded.set()
    await asyncio.gather(first, second)
    await stage.request("third")

    assert stage.below("first") == ["headrace.load", "headrace.queue", "StreamCompletion"]
    assert stage.below("second") == ["headrace.queue", "headrace.load.wait", "StreamCompletion"]
    assert stage.below("third") == ["StreamCompletion"]  # It did not wait.
    load, wait = stage.the("headrace.load"), stage.the("headrace.load.wait")
    assert [link.context.span_id for link in wait.links] == [id_of(load)]
    assert attributes(load)["headrace.runner.id"] == runner.id
    positions = [
        attributes(span).get("headrace.queue.position") for span in stage.all("headrace.queue")
    ]
    assert sorted(p for p in positions if p is not None) == [0, 1]
    # The parts of a wait follow each other.
    queue = stage.all("headrace.queue")[0]
    assert queue.end_time is not None
    assert load.start_time is not None
    assert queue.end_time <= load.start_time + 50_000_000


async def test_a_load_outlives_who_asked_for_it(stage: Traced) -> None:
    """It ends well, and he who gives up waiting is nobody's fault."""
    stage.set(answer, hold=True)
    first = asyncio.create_task(stage.request("first"))
    runner = await stage.launcher.launched.get()
    second = asyncio.create_task(stage.request("second"))
    await stage.until(lambda: len(stage.sent) >= 2)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    queue = stage.the("headrace.queue")
    assert attributes(queue)["error.type"] == "cancelled"
    assert queue.status.status_code is StatusCode.UNSET
    assert stage.all("headrace.load") == []
    runner.loaded.set()
    await second
    load = stage.the("headrace.load")
    assert load.parent is not None
    assert load.parent.span_id == id_of(stage.the("first"))
    assert load.status.status_code is StatusCode.UNSET


async def test_a_load_that_fails_says_why_to_all_who_wait(stage: Traced) -> None:
    stage.set(answer, hold=True, max_crashes=1)
    requests = [asyncio.create_task(stage.request(name)) for name in ("first", "second")]
    runner = await stage.launcher.launched.get()
    await stage.until(lambda: len(stage.sent) >= 2)
    await runner.die("OUT_OF_MEMORY")
    failures = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(failure) for failure in failures] == [LoadFailed, LoadFailed]
    load, wait = stage.the("headrace.load"), stage.the("headrace.load.wait")
    assert load.status.status_code is StatusCode.ERROR
    assert attributes(load)["error.type"] == "OUT_OF_MEMORY"
    assert [event.name for event in load.events] == ["headrace.runner.died"]
    assert wait.status.status_code is StatusCode.ERROR
    assert attributes(wait)["error.type"] == "LOAD_FAILED"
    assert [link.context.span_id for link in wait.links] == [id_of(load)]


async def test_who_is_refused_for_crashes_is_led_to_the_load_that_failed(stage: Traced) -> None:
    stage.set(answer, hold=True, max_crashes=1)
    first = asyncio.create_task(stage.request("first"))
    runner = await stage.launcher.launched.get()
    await runner.die("NATIVE_ABORT")
    with pytest.raises(LoadFailed):
        await first
    with pytest.raises(CircuitOpen):
        await stage.request("refused")
    refused = stage.all("headrace.queue")[-1]
    assert refused.parent is not None
    assert refused.parent.span_id == id_of(stage.the("refused"))
    assert [link.context.span_id for link in refused.links] == [id_of(stage.the("headrace.load"))]


async def test_a_preload_is_a_trace_of_its_own(stage: Traced) -> None:
    stage.set(answer)
    with stage.scheduler.ask(FakeModel()) as ticket:
        await ticket.granted()
    assert stage.the("headrace.load").parent is None
    # Nobody's wait is part of it.
    assert stage.all("headrace.queue") == []


async def test_a_refused_request_was_in_the_queue_all_the_same(stage: Traced) -> None:
    stage.set(answer, hold=True)
    stage.scheduler.set_limits(Limits(100, queue_per_model=1))
    first = asyncio.create_task(stage.request("first"))
    runner = await stage.launcher.launched.get()
    with pytest.raises(QueueFull):
        await stage.request("refused")
    (queue,) = stage.all("headrace.queue")
    assert queue.parent is not None
    assert queue.parent.span_id == id_of(stage.the("refused"))
    assert attributes(queue)["error.type"] == "QUEUE_FULL"
    runner.loaded.set()
    await first


async def test_who_waits_is_told_how_many_run(stage: Traced) -> None:
    released = asyncio.Event()

    async def wait(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        yield started()
        await released.wait()
        yield completed()

    stage.set(wait)
    stage.model = FakeModel(policy=Policy(concurrency=1))
    first = asyncio.create_task(stage.request("first"))
    await stage.until(lambda: stage.events == ["started"])
    second = asyncio.create_task(stage.request("second"))
    await stage.until(lambda: len(stage.scheduler.state.waiting) == 1)
    released.set()
    await asyncio.gather(first, second)
    told = [attributes(span).get("headrace.queue.running") for span in stage.all("headrace.queue")]
    assert told == [0, 1]


async def test_a_second_attempt_refers_to_the_first_which_says_how_it_ended(
    stage: Traced,
) -> None:
    async def die_once(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        yield started()
        if len(stage.launcher.runners) == 1:
            yield delta(1)
            # Why is known later than that it is gone, and no part of the attempt's time.
            await runner.die("NATIVE_ABORT", delay=0.3)
        yield delta(2)
        yield completed()

    stage.set(die_once)
    await stage.request("request")
    first, second = stage.all("headrace.v1.CompletionService/StreamCompletion")
    assert [attributes(span)["headrace.attempt.number"] for span in (first, second)] == [1, 2]
    assert first.status.status_code is StatusCode.ERROR
    assert attributes(first)["rpc.response.status_code"] == "UNAVAILABLE"
    (died,) = first.events
    assert died.name == "headrace.runner.died"
    assert (died.attributes or {})["headrace.runner.cause_of_death"] == "NATIVE_ABORT"
    assert died.timestamp == first.end_time
    assert [link.context.span_id for link in second.links] == [id_of(first)]
    assert second.status.status_code is StatusCode.UNSET
    assert attributes(second)["rpc.response.status_code"] == "OK"
    one, two = stage.all("headrace.load")
    assert one.end_time is not None
    assert two.start_time is not None
    assert first.end_time is not None
    assert two.start_time - first.end_time > 200_000_000
    whole = attributes(stage.the("request"))
    assert whole["headrace.stream.resumed"] == 1
    assert whole["gen_ai.usage.output_tokens"] == 2


async def test_a_cancelled_attempt_ends(stage: Traced) -> None:
    async def hang(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        yield started()
        await asyncio.Event().wait()

    stage.set(hang)
    streaming = asyncio.create_task(stage.request("request"))
    await stage.until(lambda: stage.events == ["started"])
    streaming.cancel()
    with suppress(asyncio.CancelledError):
        await streaming
    attempt = stage.the("headrace.v1.CompletionService/StreamCompletion")
    assert attributes(attempt)["rpc.response.status_code"] == "CANCELLED"
    assert attributes(stage.the("request"))["headrace.stream.resumed"] == 0


def test_an_attempt_that_broke_is_told_as_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if its caller gives up while the cause is looked for."""
    exporter = spans_of(monkeypatch, relay_spans)
    ticket: Any = SimpleNamespace(life=SimpleNamespace(id="r1", wanted=FakeModel()))
    attempt = relay_spans.Attempt("/S/M", ticket, Record(0.0), trace.INVALID_SPAN_CONTEXT)
    attempt.broke(grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(asyncio.CancelledError), attempt:
        raise asyncio.CancelledError
    (span,) = exporter.get_finished_spans()
    assert attributes(span)["rpc.response.status_code"] == "UNAVAILABLE"


def test_lines_belong_to_a_load_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    monkeypatch.setattr(loading, "_tracer", tracer)
    load = Load("r1", "m", "sha256:m", 0.0, TraceContext())
    assert load.span.is_valid
    with tracer.start_as_current_span("somebody's request"):
        with load.lines():
            assert trace.get_current_span().get_span_context() == load.span
        load.done(None)
        with load.lines():
            assert not trace.get_current_span().get_span_context().is_valid
        assert trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("expected", [True, False])
def test_a_load_that_was_called_off_is_no_error(
    expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = spans_of(monkeypatch, loading)
    load = Load("r1", "m", "sha256:m", 0.0, TraceContext())
    load.died(Death("EXITED", "it ended", detail="last words", expected=expected))
    load.failed("EXITED", "once more")
    (span,) = exporter.get_finished_spans()
    assert span.status.is_ok is expected
    assert attributes(span)["error.type"] == ("cancelled" if expected else "EXITED")
    words = [(event.attributes or {}).get("headrace.runner.last_words") for event in span.events]
    assert words == ([] if expected else ["last words"])
