"""Spans and log lines on their way into the local store, or to the process that has one.

Imported only where there is one: it brings OpenTelemetry's SDK.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import format_span_id, format_trace_id

from headrace.telemetry.logs import line_fields, line_time
from headrace.telemetry.records import LogLine, SpanEvent, SpanLink, SpanRecord, Value


class LocalSpanExporter(SpanExporter):
    """Gives spans that have ended to a sink, which must not block."""

    def __init__(self, service: str, instance: str, sink: Callable[[SpanRecord], None]) -> None:
        """`service` and `instance`: as in the resource's `service.name` and
        `service.instance.id`."""
        self._service = service
        self._instance = instance
        self._sink = sink

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hand the spans on at once."""
        for span in spans:
            self._sink(span_record(span, self._service, self._instance))
        return SpanExportResult.SUCCESS


class LocalLogHandler(logging.Handler):
    """Gives each line to a sink, which must not block, with the fields that it has on stderr."""

    def __init__(self, service: str, sink: Callable[[LogLine], None]) -> None:
        super().__init__()
        self._service = service
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one line on."""
        try:
            fields = line_fields(record, self._service)
            self._sink(LogLine(line_time(record), record.levelno, fields))
        except Exception:  # noqa: BLE001 - a log call must not break its caller
            return


def span_record(span: ReadableSpan, service: str, instance: str) -> SpanRecord:
    """An ended span as a plain value."""
    context, parent = span.context, span.parent
    assert context is not None
    start = span.start_time or 0
    return SpanRecord(
        trace_id=format_trace_id(context.trace_id),
        span_id=format_span_id(context.span_id),
        parent_id=format_span_id(parent.span_id) if parent is not None else "",
        name=span.name,
        kind=span.kind.name,
        service=service,
        instance=instance,
        start=start,
        end=span.end_time or start,
        status=span.status.status_code.name,
        message=span.status.description or "",
        local_root=parent is None or parent.is_remote,
        attributes=_plain(span.attributes),
        events=tuple(
            SpanEvent(event.name, event.timestamp, _plain(event.attributes))
            for event in span.events
        ),
        links=tuple(
            SpanLink(
                format_trace_id(link.context.trace_id),
                format_span_id(link.context.span_id),
                _plain(link.attributes),
            )
            for link in span.links
        ),
    )


def _plain(attributes: Mapping[str, Any] | None) -> dict[str, Value]:
    return dict(attributes or {})
