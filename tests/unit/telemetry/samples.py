"""Spans and lines to test with."""

from __future__ import annotations

from typing import Any

from headrace.telemetry.records import LogLine, SpanRecord

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SECOND = 1_000_000_000


def span(number: int = 1, parent: int = 0, **fields: Any) -> SpanRecord:
    """A span with a small number for its id; parent 0: none."""
    values: dict[str, Any] = {
        "trace_id": TRACE,
        "span_id": f"{number:016x}",
        "parent_id": f"{parent:016x}" if parent else "",
        "name": "headrace.load",
        "kind": "INTERNAL",
        "service": "headrace-controller",
        "instance": "c",
        "start": number * SECOND,
        "end": (number + 1) * SECOND,
        "local_root": not parent,
    }
    return SpanRecord(**(values | fields))


def line(message: str = "it happens", time: int = SECOND, level: int = 20, **more: Any) -> LogLine:
    """A line of the log; more of its fields as they are."""
    names = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR"}
    fields = {
        "timestamp": "2026-11-24T12:00:00.000Z",
        "level": names[level],
        "message": message,
        "logger": "headrace_server.relay.relay",
        "service": "headrace-controller",
    }
    return LogLine(time, level, fields | more)
