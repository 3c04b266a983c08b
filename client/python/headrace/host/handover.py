"""The report pipe: how a runner tells the controller its address, load progress, drain and failure.

One JSON object a line, runner to controller, on a pipe the runner inherits. Both sides use this
module. It never carries requests or logs, and a vanished controller never disturbs the runner.
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

FailureCause = Literal["LOAD_FAILED", "UNSUPPORTED_MODEL", "OUT_OF_MEMORY", "MODEL_CORRUPT"]

MAX_LINE = 4096
"""Bytes in a line at most: PIPE_BUF on Linux, below which a write to a pipe is atomic."""

# Characters. One takes at most six bytes in a line, so that the longest report fits.
_MAX_MESSAGE = 400
_MAX_FILE = 200
_PROGRESS_STEP = 0.01


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


Report = Listening | Loading | Ready | Draining | Failed

_NAMES: dict[type[Report], str] = {
    Listening: "listening",
    Loading: "loading",
    Ready: "ready",
    Draining: "draining",
    Failed: "failed",
}


class HandoverError(ValueError):
    """A line on the report pipe is not a report."""


def encode(report: Report) -> bytes:
    """One line, newline included."""
    fields = {key: value for key, value in asdict(report).items() if value is not None}
    line = json.dumps({"event": _NAMES[type(report)], **fields}, ensure_ascii=False)
    # A lone surrogate (a file name that is not UTF-8) becomes its JSON escape.
    return line.encode(errors="backslashreplace") + b"\n"


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
        case other:
            raise ValueError(f"unknown event {other!r}")


class ReportWriter:
    """The runner's end of the pipe. Any thread may use it; without a pipe it does nothing.

    It never blocks for long: progress is thinned to steps of one percent, so that all the reports
    of a life fit into the pipe's buffer even if nobody reads.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._fraction = -1.0
        if fd is not None:
            # A grandchild that held the pipe open would hide the runner's death from its reader.
            os.set_inheritable(fd, False)

    def listening(self, address: str, digest: str) -> None:
        self._write(Listening(address, os.getpid(), digest))

    def loading(self, fraction: float) -> None:
        """Report progress, 0 to 1; steps under one percent are skipped."""
        with self._lock:
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

    def close(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def _write(self, report: Report) -> None:
        with self._lock:
            if self._fd is None:
                return
            try:
                os.write(self._fd, encode(report))
            except BrokenPipeError:
                # The controller is gone. Its end of stdin ends this process, not this write.
                os.close(self._fd)
                self._fd = None
