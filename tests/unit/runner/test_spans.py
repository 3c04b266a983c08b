"""The spans of a runner's start and of a generation, from the events that they are made of."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from headrace.errors import ModelCorrupt
from headrace.telemetry import names
from headrace.v1.completion_pb2 import StreamCompletionRequest
from headrace_runner import starting
from headrace_runner.config import parse
from headrace_runner.engine.text.request import (
    ChoiceEnd,
    Delta,
    Finish,
    Finished,
    GenerationRequest,
    Prefill,
)
from headrace_runner.services import spans
from headrace_runner.services.spans import MAX_CHUNKS, GenerationSpan
from headrace_runner.starting import Start
from tests.tracing import spans_of

MS = 1_000_000
LOAD = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    monkeypatch.delenv("TRACEPARENT", raising=False)
    return spans_of(monkeypatch, spans, starting)


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    found = {span.name: span for span in exporter.get_finished_spans()}
    assert len(found) == len(exporter.get_finished_spans())
    return found


def generation(arrived: int = 0) -> GenerationSpan:
    config = parse(["--model", str(Path(__file__).parent), "--name", "m"])
    return GenerationSpan(StreamCompletionRequest(model="m", prompt="x"), "id", config, arrived)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_generation_has_its_parts(exporter: InMemorySpanExporter) -> None:
    span = generation()
    span.accepted(GenerationRequest("id", [1] * 30, 8, resume=((5, 6, 7),)))
    span.started(10 * MS, 4)
    span.prefilled(Prefill(20, 30, tokens=16, began=10 * MS, at=20 * MS))
    span.prefilled(Prefill(29, 30, tokens=12, began=20 * MS, at=30 * MS))
    span.advanced(Delta(output_tokens=1))
    ends = (ChoiceEnd(Finish.LENGTH, None, 8),)
    span.finished(Finished(ends, 10 * MS, 31 * MS, 50 * MS))
    span.end()
    chunks = [s for s in exporter.get_finished_spans() if s.name == names.SPAN_PREFILL_CHUNK]
    assert [attributes(chunk)[names.HEADRACE_PREFILL_TOKENS] for chunk in chunks] == [16, 12]
    found = {s.name: s for s in exporter.get_finished_spans()}
    whole, prefill = found["text_completion m"], found[names.SPAN_PREFILL]
    assert attributes(prefill) == {
        names.HEADRACE_PREFILL_TOKENS: 28,
        names.HEADRACE_PREFILL_CACHED_TOKENS: 4,
        names.HEADRACE_PREFILL_CHUNKS: 2,
    }
    for name, milliseconds in (
        (names.SPAN_QUEUE, 10),
        (names.SPAN_PREFILL, 21),
        (names.SPAN_DECODE, 19),
    ):
        part = found[name]
        assert (part.end_time or 0) - (part.start_time or 0) == milliseconds * MS
        assert part.parent is not None
        assert whole.context is not None
        assert part.parent.span_id == whole.context.span_id
    (event,) = whole.events
    assert event.name == names.EVENT_FIRST_TOKEN
    assert event.timestamp == found[names.SPAN_DECODE].start_time
    told = attributes(whole)
    assert told[names.GEN_AI_USAGE_OUTPUT_TOKENS] == 8
    assert told[names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS] == 4
    assert told[names.HEADRACE_RESUMED_TOKENS] == 3


@pytest.mark.parametrize(
    ("reached", "parts"),
    [
        (0, set()),
        (1, {names.SPAN_QUEUE}),
        (2, {names.SPAN_QUEUE, names.SPAN_PREFILL}),
        (3, {names.SPAN_QUEUE, names.SPAN_PREFILL, names.SPAN_PREFILL_CHUNK}),
        (4, {names.SPAN_QUEUE, names.SPAN_PREFILL, names.SPAN_PREFILL_CHUNK, names.SPAN_DECODE}),
    ],
)
def test_what_is_cancelled_tells_how_far_it_came(
    reached: int, parts: set[str], exporter: InMemorySpanExporter
) -> None:
    span = generation()
    steps: tuple[Callable[[], None], ...] = (
        lambda: span.accepted(GenerationRequest("id", [1] * 30, 8)),
        lambda: span.started(10 * MS, 0),
        lambda: span.prefilled(Prefill(20, 30, tokens=20, began=10 * MS, at=20 * MS)),
        lambda: span.advanced(Delta(output_tokens=3)),
    )
    for step in steps[:reached]:
        step()
    span.failed(asyncio.CancelledError())
    span.end()
    found = by_name(exporter)
    whole = found.pop("text_completion m")
    assert found.keys() == parts
    assert whole.status.status_code is StatusCode.UNSET
    assert attributes(whole)[names.ERROR_TYPE] == "cancelled"
    assert attributes(whole).get(names.GEN_AI_USAGE_OUTPUT_TOKENS) == (3 if reached == 4 else None)


@pytest.mark.parametrize("passes", [1, MAX_CHUNKS, MAX_CHUNKS + 1, 1000])
def test_the_passes_of_a_long_prefill_are_told_in_a_bounded_number(
    passes: int, exporter: InMemorySpanExporter
) -> None:
    span = generation()
    span.accepted(GenerationRequest("id", [1] * passes, 8))
    span.started(MS, 0)
    for i in range(1, passes + 1):
        span.prefilled(Prefill(i, passes, tokens=1, began=i * MS, at=(i + 1) * MS))
    span.end()
    chunks = [s for s in exporter.get_finished_spans() if s.name == names.SPAN_PREFILL_CHUNK]
    assert min(passes, MAX_CHUNKS // 2) <= len(chunks) <= MAX_CHUNKS
    # None is missing: each begins where the one before ended.
    assert sum(attributes(chunk)[names.HEADRACE_PREFILL_TOKENS] for chunk in chunks) == passes
    assert sum(attributes(chunk)[names.HEADRACE_PREFILL_CHUNKS] for chunk in chunks) == passes
    for before, after in pairwise(chunks):
        assert before.end_time == after.start_time


def test_the_parts_of_a_start_hang_from_the_load(
    exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", LOAD)
    start = Start((5, 7))
    with start.part(names.SPAN_LOAD_PREPARE):
        pass

    def load() -> None:
        with start.part(names.SPAN_LOAD_WEIGHTS):
            assert trace.get_current_span().is_recording(), "its lines are part of it"
        start.warms_up()

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    start.end()
    found = by_name(exporter)
    assert list(found) == [
        names.SPAN_LOAD_IMPORTS,
        names.SPAN_LOAD_PREPARE,
        names.SPAN_LOAD_WEIGHTS,
        names.SPAN_LOAD_WARM_UP,
    ]
    for span in found.values():
        assert span.parent is not None
        assert trace.format_span_id(span.parent.span_id) == "b" * 16
    assert (found[names.SPAN_LOAD_IMPORTS].start_time, found[names.SPAN_LOAD_IMPORTS].end_time) == (
        5,
        7,
    )
    with start.lines():
        context = trace.get_current_span().get_span_context()
    assert trace.format_trace_id(context.trace_id) == "a" * 32


def test_a_runner_that_nobody_told_of_a_load_has_one_of_its_own(
    exporter: InMemorySpanExporter,
) -> None:
    start = Start()
    with start.part(names.SPAN_LOAD_WEIGHTS):
        pass
    start.end()
    found = by_name(exporter)
    load, weights = found[names.SPAN_LOAD], found[names.SPAN_LOAD_WEIGHTS]
    assert load.parent is None
    assert weights.parent == load.context


@pytest.mark.parametrize("part", [names.SPAN_LOAD_WEIGHTS, names.SPAN_LOAD_WARM_UP])
def test_a_part_says_what_it_failed_for(part: str, exporter: InMemorySpanExporter) -> None:
    start = Start()
    error = ModelCorrupt("it is cut off", file="model.safetensors")
    if part == names.SPAN_LOAD_WEIGHTS:
        with pytest.raises(ModelCorrupt), start.part(part):
            raise error
    else:
        start.warms_up()
    start.end(error)
    found = by_name(exporter)
    for span in (found[part], found[names.SPAN_LOAD]):
        assert span.status.status_code is StatusCode.ERROR
        assert attributes(span)[names.ERROR_TYPE] == "MODEL_CORRUPT"


def test_a_request_is_logged_about_in_the_context_that_it_came_in() -> None:
    """Whatever thread logs."""
    seen = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(trace.get_current_span().get_span_context().span_id)

    logger = logging.Logger("engine", logging.WARNING)  # noqa: LOG001 - not of the process's tree
    logger.addHandler(Handler())
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    with tracer.start_as_current_span("request") as span:
        request = GenerationRequest("id", [1], 8)
    thread = threading.Thread(target=lambda: request.context.run(logger.warning, "out of memory"))
    thread.start()
    thread.join()
    assert seen == [span.get_span_context().span_id]
