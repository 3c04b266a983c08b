"""What the file of the local store has, and what has to go from it. Pure.

Lines and spans are in one table, in the order in which they came: the oldest rows are the lowest
ids, whatever clocks did meanwhile, and a trace and its lines go at about the same time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from headrace.telemetry.records import (
    LogLine,
    SpanRecord,
    bounded,
    span_from_fields,
    span_to_fields,
)

VERSION: Final = 1
"""Part of the file's name: another layout is another file, and two versions of the controller that
run at once, as in a takeover, do not disturb each other."""

LOG, SPAN, LOCAL_ROOT = 0, 1, 2
"""Kinds of rows. A local root is a span whose parent is in another process, or nowhere."""

LEAST_BYTES: Final = 4 << 20
"""A smaller store would hold nothing for long."""

TABLES: Final = """
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY,
    kind INTEGER NOT NULL,
    time INTEGER NOT NULL,
    level INTEGER NOT NULL,
    trace_id TEXT NOT NULL,
    model TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS records_by_trace ON records (trace_id) WHERE trace_id <> '';
CREATE INDEX IF NOT EXISTS records_local_roots ON records (id) WHERE kind = 2;
"""

INSERT: Final = (
    "INSERT INTO records (kind, time, level, trace_id, model, data) VALUES (?, ?, ?, ?, ?, ?)"
)

ENDS: Final = "SELECT (SELECT min(id) FROM records), (SELECT max(id) FROM records)"
"""The lowest and the highest id. Each by itself is found at once; for both in one, SQLite would
read the whole table."""

Record: TypeAlias = LogLine | SpanRecord
Row: TypeAlias = tuple[int, int, int, str, str, str]

_ROWS, _LOG, _TRANSACTION = 3 / 4, 1 / 16, 1 / 32
"""Of the limit: for rows; for the write-ahead log until it goes into the file, which it does when a
transaction has ended; for the text of one transaction. What is left is for the pages that change
with it."""
_SLICE = 1 / 16
"""Of the rows, at least: what is deleted at a time."""


def store_path(home: Path) -> Path:
    """Where the store of a home is."""
    return home / "telemetry" / f"v{VERSION}.sqlite3"


def row_of(record: Record) -> Row:
    """The row that keeps a record."""
    if isinstance(record, SpanRecord):
        data = span_to_fields(record)
        kind = LOCAL_ROOT if record.local_root else SPAN
        return (kind, record.end, 0, record.trace_id, "", _json(data))
    fields = bounded(record.fields)
    trace_id, model = record.text("trace_id"), record.text("model")
    return (LOG, record.time, record.level, trace_id, model, _json(fields))


def span_of(data: str) -> SpanRecord:
    """The span that a row keeps. Raises ValueError, KeyError or TypeError where it is broken."""
    return span_from_fields(json.loads(data))


def line_of(time: int, level: int, data: str) -> LogLine:
    """The line that a row keeps. Raises ValueError where it is broken."""
    return LogLine(time, level, json.loads(data))


def pages_for_rows(limit: int, page_size: int) -> int:
    """Pages that rows may use of a store of `limit` bytes."""
    return int(limit * _ROWS) // page_size


def pages_for_log(limit: int, page_size: int) -> int:
    """Pages of the write-ahead log after which it goes into the file."""
    return max(1, int(limit * _LOG) // page_size)


def transactions(rows: Iterable[Row], limit: int) -> Iterator[list[Row]]:
    """The rows in parts, each small beside the limit."""
    part: list[Row] = []
    size = 0
    for row in rows:
        part.append(row)
        size += len(row[-1])
        if size > limit * _TRANSACTION:
            yield part
            part, size = [], 0
    if part:
        yield part


def last_to_go(first: int, last: int, used: int, allowed: int) -> int | None:
    """The highest id to delete, of rows with ids from `first` to `last` that use so many pages.

    None: they may stay. The newest row always stays.
    """
    if used <= allowed or first >= last:
        return None
    share = max(_SLICE, 1 - allowed / used)
    return min(last - 1, first + int((last - first) * share))


def _json(fields: Mapping[str, Any]) -> str:
    # What cannot be encoded is a lone surrogate, of a path that is not UTF-8, say.
    text = json.dumps(fields, ensure_ascii=False, default=repr, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace").decode()
