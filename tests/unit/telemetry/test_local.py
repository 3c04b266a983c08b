"""Spans and log records as the local store gets them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from headrace.telemetry.local import LocalLogHandler, LocalSpanExporter
from headrace.telemetry.logs import JsonFormatter
from headrace.telemetry.records import LogLine, SpanRecord

REMOTE = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1))


@pytest.fixture
def spans() -> list[SpanRecord]:
    return []


@pytest.fixture
def tracer(spans: list[SpanRecord]) -> trace.Tracer:
    provider = TracerProvider(resource=Resource.get_empty(), shutdown_on_exit=False)
    exporter = LocalSpanExporter("headrace-runner", "r1", spans.append)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("test")


def test_a_span_with_all_that_it_has(tracer: trace.Tracer, spans: list[SpanRecord]) -> None:
    remote = trace.set_span_in_context(NonRecordingSpan(REMOTE))
    with tracer.start_as_current_span("call", remote, SpanKind.SERVER) as call:
        part = tracer.start_span(
            "part", links=[Link(REMOTE, {"n": 1})], attributes={"list": ["a", "b"]}, start_time=5
        )
        part.add_event("died", {"why": "SIGNAL"}, 7)
        part.set_status(trace.StatusCode.ERROR, "no more")
        part.end(9)
    inner, outer = spans
    assert (inner.name, inner.kind, inner.service, inner.instance) == (
        *("part", "INTERNAL", "headrace-runner", "r1"),
    )
    assert (inner.start, inner.end, inner.status, inner.message) == (5, 9, "ERROR", "no more")
    assert inner.parent_id == outer.span_id == f"{call.get_span_context().span_id:016x}"
    assert (inner.local_root, outer.local_root) == (False, True)
    assert outer.parent_id == f"{0xDEF:016x}"
    assert inner.trace_id == outer.trace_id == f"{0xABC:032x}"
    assert list(inner.attributes["list"]) == ["a", "b"]  # type: ignore[arg-type]
    assert (inner.events[0].name, inner.events[0].time) == ("died", 7)
    assert inner.events[0].attributes == {"why": "SIGNAL"}
    assert (inner.links[0].span_id, inner.links[0].attributes) == (f"{0xDEF:016x}", {"n": 1})


@pytest.fixture
def lines() -> list[LogLine]:
    return []


@pytest.fixture
def logger(lines: list[LogLine]) -> Iterator[logging.Logger]:
    logger = logging.getLogger("headrace.test_local")
    handler = LocalLogHandler("headrace-controller", lines.append)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_a_line_has_the_fields_that_it_has_on_stderr(
    logger: logging.Logger,
    lines: list[LogLine],
    tracer: trace.Tracer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with tracer.start_as_current_span("call") as span:
        logger.warning("so %s", "it goes", extra={"model": "m:1"})
        try:
            raise ValueError("why")
        except ValueError:
            logger.exception("it failed")
        printed = [
            json.loads(JsonFormatter("headrace-controller").format(record))
            for record in caplog.records
        ]
    assert [dict(line.fields) for line in lines] == printed
    first, second = lines
    assert (first.level, first.text("message"), first.text("model")) == (30, "so it goes", "m:1")
    assert first.text("trace_id") == f"{span.get_span_context().trace_id:032x}"
    assert first.time == int(caplog.records[0].created * 1e9)
    assert "ValueError: why" in second.text("exception")


def test_a_line_of_another_process_keeps_its_time(
    logger: logging.Logger, lines: list[LogLine]
) -> None:
    at = "2026-11-24T12:00:00.250Z"
    logger.info("from there", extra={"timestamp": at, "service": "headrace-runner"})
    logger.info("from nowhere", extra={"timestamp": "soon"})
    assert lines[0].time == 1795521600250000000
    assert lines[0].text("service") == "headrace-runner"
    assert lines[1].time > lines[0].time


def test_a_wrong_log_call_breaks_nobody(logger: logging.Logger, lines: list[LogLine]) -> None:
    handler = logger.handlers[0]
    handler.handle(logger.makeRecord("x", 20, "", 0, "%d", ("no",), None))
    assert lines == []
