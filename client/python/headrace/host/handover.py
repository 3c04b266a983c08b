"""The report pipe: how a runner tells the controller its address, load progress, drain and failure.

One JSON object a line, runner to controller, on a pipe the runner inherits. Both sides use this
module. It never carries requests or logs, and a vanished controller never disturbs the runner. The
runner's spans, for the controller's local store, go the same way where there is room for them.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from headrace.host.pipes import Outlet
from headrace.telemetry.records import SpanRecord, cut, span_from_fields, span_to_fields

FailureCause = Literal["LOAD_FAILED", "UNSUPPORTED_MODEL", "OUT_OF_MEMORY", "MODEL_CORRUPT"]

MAX_LINE = 4096
"""Bytes in a line at most: PIPE_BUF on Linux, below which a write to a pipe is atomic."""

# Characters. One takes at most six bytes in a line, so that the longest report fits.
_MAX_MESSAGE = 400
_MAX_FILE = 200
_PROGRESS_STEP = 0.01
_SPANS = 2048
"""Spans that may wait for the pipe. What comes on top is dropped."""
_FLUSH = 1.0
"""Seconds for what waits to be sent, when all is over."""


@dataclass(frozen=True)
class Listening:
    """The runner has bound its socket; the load comes next."""

    address: str
    pid: int
    digest: str


@dataclass(frozen=True)
class Loading:
    """How much of the model is loaded, 0 to 1."""

    fraction: float


@dataclass(frozen=True)
class Ready:
    """The weights are loaded and one token has been generated."""


@dataclass(frozen=True)
class Failed:
    """Why the runner is about to exit."""

    cause: FailureCause
    message: str
    file: str | None = None


@dataclass(frozen=True)
class Draining:
    """The runner takes nothing new; in `grace` seconds it ends what still runs."""

    grace: float


@dataclass(frozen=True)
class Ended:
    """A span of the runner has ended."""

    span: SpanRecord


Report = Listening | Loading | Ready | Draining | Failed | Ended

_NAMES: dict[type[Report], str] = {
    Listening: "listening",
    Loading: "loading",
    Ready: "ready",
    Draining: "draining",
    Failed: "failed",
    Ended: "span",
}


class HandoverError(ValueError):
    """A line on the report pipe is not a report."""


def encode(report: Report) -> bytes:
    """One line, newline included."""
    if isinstance(report, Ended):
        return _encode_span(report.span)
    fields = {key: value for key, value in asdict(report).items() if value is not None}
    return _line(type(report), fields)


def _line(kind: type[Report], fields: dict[str, Any]) -> bytes:
    line = json.dumps({"event": _NAMES[kind], **fields}, ensure_ascii=False)
    # A lone surrogate (a file name that is not UTF-8) becomes its JSON escape.
    return line.encode(errors="backslashreplace") + b"\n"


def _encode_span(span: SpanRecord) -> bytes:
    """A span, without the least important of it where it would be too long."""
    line = _line(Ended, span_to_fields(span))
    if len(line) > MAX_LINE:
        short = {
            key: cut(value, 80) if isinstance(value, str) else value
            for key, value in span.attributes.items()
            if isinstance(value, str | bool | int | float)
        }
        message, name = cut(span.message, 80), cut(span.name, 80)
        span = replace(
            span, name=name, message=message, attributes=short, events=(), links=span.links[:2]
        )
        line = _line(Ended, span_to_fields(span))
    if len(line) > MAX_LINE:
        line = _line(Ended, span_to_fields(replace(span, attributes={}, links=())))
    return line


def decode(line: bytes) -> Report:
    """The report in a line. Unknown fields are ignored, so that either side may be the newer one.

    Raises HandoverError when it is not one.
    """
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise HandoverError(f"not JSON: {line[:200]!r}") from error
    if not isinstance(fields, dict):
        raise HandoverError(f"not an object: {line[:200]!r}")
    try:
        return _from_fields(fields)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise HandoverError(f"{type(error).__name__}: {error} in {line[:200]!r}") from error


def _from_fields(fields: dict[str, Any]) -> Report:
    match fields["event"]:
        case "listening":
            return Listening(str(fields["address"]), int(fields["pid"]), str(fields["digest"]))
        case "loading":
            return Loading(min(max(float(fields["fraction"]), 0.0), 1.0))
        case "ready":
            return Ready()
        case "draining":
            return Draining(max(float(fields["grace"]), 0.0))
        case "failed":
            cause = fields["cause"]
            if cause not in get_args(FailureCause):
                raise ValueError(f"unknown cause {cause!r}")
            file = fields.get("file")
            return Failed(cause, str(fields["message"]), None if file is None else str(file))
        case "span":
            return Ended(span_from_fields(fields))
        case other:
            raise ValueError(f"unknown event {other!r}")


class ReportWriter:
    """The runner's end of the pipe. Any thread may use it; without a pipe it does nothing.

    It never blocks for long: progress is thinned to steps of one percent, so that all the reports
    of a life fit into the pipe's buffer even if nobody reads. Spans leave room for them, and have a
    thread of their own, which waits where a reader is slow.
    """

    def __init__(self, fd: int | None) -> None:
        self._outlet = None if fd is None else Outlet(fd)
        self._fraction = -1.0
        self._state = threading.Condition()
        self._spans: deque[SpanRecord] = deque()
        self._sending: threading.Thread | None = None
        self._closed = False

    def listening(self, address: str, digest: str) -> None:
        self._write(Listening(address, os.getpid(), digest))

    def loading(self, fraction: float) -> None:
        """Report progress, 0 to 1; steps under one percent are skipped."""
        with self._state:
            if fraction < self._fraction + _PROGRESS_STEP:
                return
            self._fraction = fraction
        self._write(Loading(fraction))

    def ready(self) -> None:
        self._write(Ready())

    def draining(self, grace: float) -> None:
        """Report that nothing new is taken; say so before the health service does, which would
        look like a stall."""
        self._write(Draining(grace))

    def failed(self, cause: FailureCause, message: str, file: str | None = None) -> None:
        """Report why the runner exits; long texts are cut so that the line stays atomic."""
        # A message says most at its start, a path at its end.
        self._write(Failed(cause, message[:_MAX_MESSAGE], file[-_MAX_FILE:] if file else None))

    def ended(self, span: SpanRecord) -> None:
        """Report a span soon. Never waits: a span for which there is no room is dropped."""
        with self._state:
            if self._outlet is None or self._closed or len(self._spans) >= _SPANS:
                return
            self._spans.append(span)
            if self._sending is None:
                self._sending = threading.Thread(
                    target=self._send_spans, name="headrace-spans", daemon=True
                )
                self._sending.start()
            self._state.notify_all()

    def close(self) -> None:
        """Send the spans that wait, if the controller takes them within a second, and end."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        if self._sending is not None:
            self._sending.join(_FLUSH)
        if self._outlet is not None:
            self._outlet.close()

    def _send_spans(self) -> None:
        assert self._outlet is not None
        while True:
            with self._state:
                self._state.wait_for(lambda: self._spans or self._closed)
                if not self._spans:
                    return
                span = self._spans.popleft()
            if not self._outlet.write_when_there_is_room(encode(Ended(span))):
                return  # The controller is gone.

    def _write(self, report: Report) -> None:
        if self._outlet is not None:
            self._outlet.write(encode(report))
