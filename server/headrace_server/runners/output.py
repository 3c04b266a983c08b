"""A runner's printed output: re-emitted through this process's log, its end kept for a diagnosis.

Reads whatever comes as fast as it comes, so that the child never blocks on a full pipe, and holds
a bounded amount of it whatever the length of a line. Never parses beyond a log line's JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from headrace_server.runners.spec import RunnerSpec

logger = logging.getLogger(__name__)

PIECE_BYTES = 64 * 1024
"""A longer line is cut into pieces of this size."""
TAIL_BYTES = 64 * 1024
"""How much of the end of the output is kept."""

_READ_BYTES = 64 * 1024
# Attributes of a log record that a field of the child's must not overwrite.
_RESERVED = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


Lines = Callable[[], AbstractContextManager[None]]
"""Gives the context that log lines of a runner belong to at this moment."""


class LineSplitter:
    """Bytes in, lines out; at most `piece` bytes are held back."""

    def __init__(self, piece: int = PIECE_BYTES) -> None:
        self._piece = piece
        self._held = bytearray()

    def feed(self, data: bytes) -> list[str]:
        """The lines and pieces that `data` completes, without their newlines."""
        *whole, rest = data.split(b"\n")
        lines: list[str] = []
        for part in whole:
            self._held += part
            self._cut(lines)
            lines.append(self._take(len(self._held)))
        self._held += rest
        self._cut(lines)
        return lines

    def flush(self) -> list[str]:
        """What is left when the output has ended."""
        return [self._take(len(self._held))] if self._held else []

    def _cut(self, lines: list[str]) -> None:
        while len(self._held) > self._piece:
            end = self._piece
            # Not inside a UTF-8 sequence, which has at most three continuation bytes.
            while end > self._piece - 3 and self._held[end] & 0xC0 == 0x80:
                end -= 1
            lines.append(self._take(end))

    def _take(self, end: int) -> str:
        text = self._held[:end].decode(errors="replace")
        del self._held[:end]
        return text


class Tail:
    """The last lines that are not log records, up to a number of bytes, and when each came."""

    def __init__(self, limit: int = TAIL_BYTES) -> None:
        self._limit = limit
        self._size = 0
        self._lines: deque[tuple[float, str, int]] = deque()

    def add(self, line: str, now: float) -> None:
        size = len(line.encode()) + 1
        self._lines.append((now, line, size))
        self._size += size
        # The newest line stays even if it alone is over the limit: it is at most a piece.
        while self._size > self._limit and len(self._lines) > 1:
            self._size -= self._lines.popleft()[2]

    def since(self, moment: float) -> list[str]:
        """The lines that came at or after `moment`, oldest first."""
        return [line for came, line, _ in self._lines if came >= moment]


class RunnerOutput:
    """Pumps one runner's output until it ends. `tail` times are `time.monotonic()`."""

    def __init__(self, spec: RunnerSpec, lines: Lines = nullcontext) -> None:
        """`lines`: the context for what it prints outside its log, which names no trace."""
        self.tail = Tail()
        self._lines = lines
        self._identity = {"runner_id": spec.id, "model": spec.model}
        self._splitter = LineSplitter()

    async def pump(self, stream: asyncio.StreamReader) -> None:
        """Read until the end of the stream: all writers have closed it."""
        while data := await stream.read(_READ_BYTES):
            self._emit_all(self._splitter.feed(data))
            # A child that prints without pause must not keep this loop to itself.
            await asyncio.sleep(0)
        self._emit_all(self._splitter.flush())

    def _emit_all(self, lines: list[str]) -> None:
        now = time.monotonic()
        for line in lines:
            fields = parse_record(line)
            if fields is not None:
                self._emit(fields)
            elif line.strip():
                self.tail.add(line, now)
                with self._lines():
                    logger.warning("%s", line, extra=self._identity)

    def _emit(self, fields: dict[str, Any]) -> None:
        level = logging.getLevelName(str(fields.pop("level", "INFO")).upper())
        level = level if isinstance(level, int) else logging.INFO
        if not logger.isEnabledFor(level):
            return
        message = str(fields.pop("message"))
        # The child's name goes on the record, not to getLogger(), which would keep it for ever.
        name = str(fields.pop("logger", logger.name))
        extra = {key: value for key, value in fields.items() if key not in _RESERVED}
        record = logger.makeRecord(
            name, level, "", 0, message, (), None, extra=extra | self._identity
        )
        logger.handle(record)


def parse_record(line: str) -> dict[str, Any] | None:
    """The fields of a JSON log line; None for any other text."""
    if not line.startswith("{"):
        return None
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and "message" in fields else None
