"""Log lines on stderr: one JSON object a line for machines, plain text on a terminal.

Every line carries the trace and span it belongs to, and what `bind` and `bind_process` have said of
the work that it is about. Writing happens in a thread of its own, over
a bounded buffer: a reader of stderr that stops reading costs log lines, never the event loop.
"""

from __future__ import annotations

import json
import logging
import os
import select
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from opentelemetry import trace

from headrace.telemetry.records import MAX_TIME

BUFFER_BYTES: Final = 1 << 20
"""Log text held for a slow reader. What comes on top is dropped and counted."""
_GATHER: Final = 0.05
"""Seconds for which lines are gathered after a write, before the next one. Waking a thread for
every line would cost the process more than the lines do."""

_PLAIN: Final = logging.Formatter()
_LINE: Final = "headrace_line"
"""Where a record keeps what its line has, for all handlers."""
_STANDARD: Final = frozenset(
    {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message", _LINE}
)


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def trace_ids() -> dict[str, str]:
    """Give `trace_id` and `span_id` of the current span; nothing if there is none."""
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(span.trace_id),
        "span_id": trace.format_span_id(span.span_id),
    }


_process: Mapping[str, Any] = MappingProxyType({})
_bound: ContextVar[Mapping[str, Any]] = ContextVar("headrace_log_fields", default=_process)


def bind_process(**fields: Any) -> None:
    """Have every line of this process carry these fields, such as a runner's id and model."""
    global _process  # noqa: PLW0603 - as there is one root logger
    _process = MappingProxyType(fields)


def bind(**fields: Any) -> None:
    """Have the lines of this task carry these fields from now on, and of those that it begins."""
    _bound.set({**_bound.get(), **fields})


def extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Give a record's fields beside the standard ones: of the process, of the task, and what the
    log call has added with `extra`; the later win. To be called by who logs.
    """
    added = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    return {**_process, **_bound.get(), **added}


def all_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Give the same with `trace_id` and `span_id` of the current span, if there is one. A line of
    another process has only those that it names itself."""
    fields = extra_fields(record)
    return fields if is_relayed(fields) else {**trace_ids(), **fields}


def is_relayed(fields: Mapping[str, Any]) -> bool:
    """Whether a record's fields are those of a line of another process, which names its service."""
    return "service" in fields


def line_fields(record: logging.LogRecord, service: str) -> dict[str, Any]:
    """Give all that a record's line has, to be read only: see `JsonFormatter`. To be called by who
    logs."""
    known: dict[str, Any] | None = getattr(record, _LINE, None)
    if known is not None:
        return known
    line: dict[str, Any] = {
        "timestamp": _timestamp(record),
        "level": record.levelname,
        "message": record.getMessage(),
        "logger": record.name,
        "service": service,
        **all_fields(record),
    }
    if record.exc_info:
        line["exception"] = _PLAIN.formatException(record.exc_info)
    if record.stack_info:
        line["stack"] = record.stack_info
    setattr(record, _LINE, line)
    return line


def line_time(record: logging.LogRecord) -> int:
    """Give when a record's line was logged, in nanoseconds since 1970. A line of another process
    has a time of its own."""
    told = getattr(record, "timestamp", None)
    if isinstance(told, str):
        with suppress(ValueError, OverflowError):
            # Of a float no more digits are true than those of microseconds.
            at = round(datetime.fromisoformat(told).timestamp() * 1e6) * 1000
            return min(max(0, at), MAX_TIME)
    return int(record.created * 1e9)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: timestamp (RFC 3339, UTC, ms), level, message, logger, service,
    trace_id, span_id, the record's extra fields, and `exception` with its traceback.

    Extra fields win over the others, so that a line of another process keeps its own `service`,
    `timestamp` and `trace_id`.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Give the record's line."""
        return json.dumps(line_fields(record, self._service), ensure_ascii=False, default=repr)


class TextFormatter(logging.Formatter):
    """`12:00:00.000 INFO    logger: message key=value`, and the traceback below.

    Where something is wrong, the trace is one of the fields.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Give the record's lines."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        shown = all_fields(record)
        for key in ("service", "timestamp", "span_id"):
            shown.pop(key, None)
        if record.levelno < logging.WARNING:
            shown.pop("trace_id", None)
        fields = "".join(f" {key}={value}" for key, value in shown.items())
        text = (
            f"{clock}.{int(record.msecs):03d} {record.levelname:<7} "
            f"{record.name}: {record.getMessage()}{fields}"
        )
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class BufferedHandler(logging.Handler):
    """Writes lines to a file descriptor from a thread; `emit` never waits for the reader."""

    def __init__(self, fd: int = 2, limit: int = BUFFER_BYTES) -> None:
        super().__init__()
        self._fd = fd
        self._limit = limit
        self._state = threading.Condition()
        self._lines: list[bytes] = []
        self._held = 0
        self._dropped = 0
        self._gathering = False
        self._urgent = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="headrace-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record's line into the buffer, or drop it if the buffer is full."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a log call with wrong arguments must not break its caller
            line = self.format(
                _note(f"a log call at {record.pathname}:{record.lineno} cannot be formatted")
            )
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._state:
            if self._closed or self._held + len(data) > self._limit:
                self._dropped += 1
            else:
                self._lines.append(data)
                self._held += len(data)
            self._urgent |= (record.levelno or 0) >= logging.WARNING  # It may be the last one.
            if self._urgent or not self._gathering:
                self._state.notify_all()

    def flush(self, timeout: float = 1.0) -> None:
        """Wait until all lines are written, or the timeout (seconds) has passed."""
        with self._state:
            self._urgent = True
            self._state.notify_all()
            self._state.wait_for(lambda: self._held == 0 and self._dropped == 0, timeout)

    def close(self) -> None:
        """Write what is held, if the reader takes it within a second, and end the thread."""
        self.flush()
        with self._state:
            self._closed = True
            self._state.notify_all()
        super().close()

    def _run(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._lines or self._dropped or self._closed)
                if self._closed:
                    return
                lines, self._lines = self._lines, []
                dropped = self._dropped
                self._urgent = False
            data = b"".join(lines)
            taken = len(data)
            if dropped:
                note = _note(f"{dropped} log records dropped: stderr is read too slowly")
                data += self.format(note).encode() + b"\n"
            self._write(data)
            with self._state:
                self._held -= taken
                self._dropped -= dropped
                self._state.notify_all()
                self._gathering = True
                self._state.wait_for(lambda: self._urgent or self._closed, _GATHER)
                self._gathering = False

    def _write(self, data: bytes) -> None:
        # Not through sys.stderr: its lock, held in a blocked write, would break the exit.
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                select.select([], [self._fd], [])
            except OSError:
                return  # nobody reads any more


def _note(message: str) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, message, None, None)
