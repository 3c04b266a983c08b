"""Looks into the local store, while controllers write it and after they have gone.

Each question is a short transaction of its own: a reader holds up no writer, and sees what is new
by asking again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from headrace.telemetry.records import LogLine, SpanRecord
from headrace.telemetry.store.schema import LOCAL_ROOT, LOG, SPAN, line_of, span_of

_BUSY = 5.0  # seconds
_MANY = 8
"""Traces of an ambiguous id that are named."""


class NothingKeptError(Exception):
    """There is no store, or it cannot be read; the message says which."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which lines are wanted. What is empty or 0 leaves nothing out."""

    model: str = ""
    """Its name with the tag, or all of its tags by the name without one."""
    spans: Mapping[str, frozenset[str] | None] = field(default_factory=dict)
    """By trace: the spans that they belong to; None for all of it."""
    since: int = 0
    """Nanoseconds since 1970."""
    level: int = 0
    """The least, of Python's logging."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What is kept of one trace."""

    trace_id: str
    spans: Sequence[SpanRecord]
    """By their start."""
    lines: Sequence[LogLine]
    """By their time."""

    def part(self, span_id: str) -> Trace:
        """One span, what is below it, and their lines."""
        ids = {span_id}
        while more := {s.span_id for s in self.spans if s.parent_id in ids} - ids:
            ids |= more
        return Trace(
            self.trace_id,
            [span for span in self.spans if span.span_id in ids],
            [line for line in self.lines if line.text("span_id") in ids],
        )


class StoreReader:
    """Reads one store. Use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        """Raises NothingKeptError."""
        if not path.is_file():
            raise NothingKeptError(f"there is no {path}")
        self._path = path
        try:
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY
            )
        except sqlite3.Error as error:
            raise NothingKeptError(f"{path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()

    def last_lines(self, wanted: Filter, count: int) -> tuple[int, list[LogLine]]:
        """The last `count` lines, oldest first, and where `lines_after` goes on."""
        end = self.end()
        rows = self._lines(wanted, f"id <= {end}", "ORDER BY id DESC", count)
        return end, [line for _, line in reversed(rows)]

    def lines_after(self, place: int, wanted: Filter, count: int) -> tuple[int, list[LogLine]]:
        """The first `count` lines that came after a place, and the next place."""
        end = self.end()
        rows = self._lines(wanted, f"id > {place} AND id <= {end}", "ORDER BY id", count)
        if len(rows) == count:
            end = rows[-1][0]
        return end, [line for _, line in rows]

    def end(self) -> int:
        """The place behind all that is kept now."""
        ((last,),) = self._ask("SELECT max(id) FROM records", ())
        return int(last or 0)

    def trace_ids(self, prefix: str) -> list[str]:
        """The traces whose id begins so, the latest first; not more than a few."""
        rows = self._ask(
            "SELECT trace_id FROM records WHERE trace_id >= ? AND trace_id < ? "
            "GROUP BY trace_id ORDER BY max(id) DESC LIMIT ?",
            (prefix, prefix + "g", _MANY),
        )
        return [str(trace_id) for (trace_id,) in rows]

    def trace(self, trace_id: str) -> Trace:
        """All that is kept of a trace."""
        rows = self._ask(
            "SELECT kind, time, level, data FROM records WHERE trace_id = ? ORDER BY id",
            (trace_id,),
        )
        spans = [span_of(data) for kind, _, _, data in rows if kind in (SPAN, LOCAL_ROOT)]
        lines = [line_of(time, level, data) for kind, time, level, data in rows if kind == LOG]
        spans.sort(key=lambda span: (span.start, -span.end))
        lines.sort(key=lambda line: line.time)
        return Trace(trace_id, spans, lines)

    def linked(self, trace: Trace) -> list[Trace]:
        """What spans of a trace are linked to in others, each with what is below it: the load that
        a request waited for, though another had caused it. Not more than a few."""
        links = [link for span in trace.spans for link in span.links]
        places = dict.fromkeys((link.trace_id, link.span_id) for link in links)
        others = [place for place in places if place[0] != trace.trace_id][:_MANY]
        parts = [self.trace(trace_id).part(span_id) for trace_id, span_id in others]
        return [part for part in parts if part.spans or part.lines]

    def last_roots(self, count: int) -> list[SpanRecord]:
        """The last `count` spans that came into their process from elsewhere, the latest first."""
        rows = self._ask(
            f"SELECT data FROM records WHERE kind = {LOCAL_ROOT} ORDER BY id DESC LIMIT ?", (count,)
        )
        return [span_of(data) for (data,) in rows]

    def _lines(
        self, wanted: Filter, where: str, order: str, count: int
    ) -> list[tuple[int, LogLine]]:
        conditions: list[str] = [f"kind = {LOG}", where]
        values: list[object] = []
        if wanted.model:
            conditions.append("(model = ? OR substr(model, 1, ?) = ?)")
            name = f"{wanted.model}:"
            values += [wanted.model, len(name), name]
        if wanted.spans:
            conditions.append(f"trace_id IN ({', '.join('?' * len(wanted.spans))})")
            values += wanted.spans
        else:
            order += f" LIMIT {count}"
        if wanted.since:
            conditions.append("time >= ?")
            values.append(wanted.since)
        if wanted.level:
            conditions.append("level >= ?")
            values.append(wanted.level)
        rows = self._ask(
            f"SELECT id, time, level, data FROM records WHERE {' AND '.join(conditions)} {order}",
            values,
        )
        lines = [(place, line_of(time, level, data)) for place, time, level, data in rows]
        if wanted.spans:
            lines = [found for found in lines if _belongs(found[1], wanted.spans)][:count]
        return lines

    def _ask(self, question: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._faults(), closing(self._connection.execute(question, values)) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise NothingKeptError(f"{self._path} cannot be read: {error}") from error


def _belongs(line: LogLine, spans: Mapping[str, frozenset[str] | None]) -> bool:
    ids = spans[line.text("trace_id")]
    return ids is None or line.text("span_id") in ids
