"""The local store: written by one thread, read by anybody, bounded, and in nobody's way."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.telemetry.logs import line_time
from headrace.telemetry.records import (
    MAX_TEXT,
    MAX_TIME,
    SpanEvent,
    SpanLink,
    cut,
    span_from_fields,
    span_to_fields,
)
from headrace.telemetry.store import schema
from headrace.telemetry.store.reader import Filter, NothingKeptError, StoreReader
from headrace.telemetry.store.writer import StoreWriter
from tests.unit.telemetry.samples import SECOND, TRACE, line, span

OTHER = "4bf92f35" + "0" * 24
Open = Callable[..., StoreWriter]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return schema.store_path(tmp_path)


@pytest.fixture
def opened(path: Path) -> Iterator[Open]:
    """Opens writers of the one path; they end with the test."""
    writers: list[StoreWriter] = []

    def _open(limit: int = schema.LEAST_BYTES, **options: Any) -> StoreWriter:
        writers.append(StoreWriter(path, limit, **options))
        return writers[-1]

    yield _open
    for writer in writers:
        writer.close()


def on_disk(path: Path) -> int:
    """Bytes of the file and of what SQLite has beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(path.name + "*"))


def messages(path: Path, wanted: Filter | None = None, count: int = 10**6) -> list[str]:
    with StoreReader(path) as reader:
        return [line.text("message") for line in reader.last_lines(wanted or Filter(), count)[1]]


def test_a_span_comes_out_as_it_went_in() -> None:
    whole = span(
        2,
        parent=1,
        status="ERROR",
        message="SIGNAL",
        attributes={"a": 1, "b": "x", "c": [1.5, 2.5], "d": True},
        events=(SpanEvent("died", 5, {"why": "SIGNAL"}),),
        links=(SpanLink(TRACE, "0" * 15 + "9", {"n": 1}),),
    )
    for one in (whole, span(), span(local_root=False)):
        assert span_from_fields(span_to_fields(one)) == one
        *_, data = schema.row_of(one)
        assert schema.span_of(data) == one


@pytest.mark.parametrize(
    "broken",
    [
        {"trace_id": "no"},
        {"trace_id": TRACE.upper()},
        {"span_id": None},
        {"start": "soon"},
        {"attributes": [1]},
        {"events": [{"name": "x"}]},
        {"links": [{"trace_id": TRACE, "span_id": "1"}]},
    ],
)
def test_what_is_no_span_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        span_from_fields({**span_to_fields(span()), **broken})


@given(st.text(), st.integers(2, 40))
def test_a_long_text_keeps_both_its_ends(text: str, limit: int) -> None:
    kept = cut(text, limit)
    assert len(kept) <= limit
    if len(text) > limit:
        begin, _, end = kept.partition("…") if "…" not in text else (kept[:1], "", kept[-1:])
        assert text.startswith(begin)
        assert limit < 3 or text.endswith(end)
    else:
        assert kept == text


def test_what_is_kept_of_a_line_is_bounded_and_any_text_is_taken(path: Path, opened: Open) -> None:
    writer = opened()
    writer.put(line("x" * 10**6, file="\udcff.gguf", **{f"k{n}": n for n in range(1000)}))
    assert writer.flush()
    with StoreReader(path) as reader:
        _, (kept,) = reader.last_lines(Filter(), 1)
    assert len(kept.fields["message"]) <= MAX_TEXT
    assert len(kept.fields) == 64
    assert kept.fields["file"] == "\udcff.gguf"


@given(st.integers(1, 10**9), st.integers(0, 10**6), st.integers(0, 10**5), st.integers(1, 10**5))
def test_what_goes(first: int, more: int, used: int, allowed: int) -> None:
    last = first + more
    goes = schema.last_to_go(first, last, used, allowed)
    if used <= allowed or not more:
        assert goes is None
    else:
        assert goes is not None
        assert first <= goes < last  # something goes, and the newest row stays


def test_what_there_is_is_known_without_reading_it() -> None:
    """Asked after every write, of a table that may be large."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(schema.TABLES)
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {schema.ENDS}")]
    assert plan.count("SEARCH records") == 2
    assert "SCAN records" not in plan


def test_lines_by_what_is_asked_for(path: Path, opened: Open) -> None:
    writer = opened()
    for given_line in (
        line("one", SECOND, model="smollm2:135m", trace_id=TRACE),
        line("two", 2 * SECOND, 30, model="smollm2:135m", runner_id="r1"),
        line("three", 3 * SECOND, 40, model="smollm2b:1b"),
        line("four", 4 * SECOND, 10),
    ):
        writer.put(given_line)
    writer.put(span())
    assert writer.flush()
    assert messages(path) == ["one", "two", "three", "four"]
    assert messages(path, count=2) == ["three", "four"]
    assert messages(path, Filter(model="smollm2")) == ["one", "two"]
    assert messages(path, Filter(model="smollm2:135m")) == ["one", "two"]
    assert messages(path, Filter(model="smollm2:1b")) == []
    assert messages(path, Filter(spans={TRACE: None})) == ["one"]
    assert messages(path, Filter(spans={TRACE: frozenset({"1"})})) == []
    assert messages(path, Filter(level=logging.WARNING)) == ["two", "three"]
    assert messages(path, Filter(since=3 * SECOND)) == ["three", "four"]
    assert messages(path, Filter(since=3 * SECOND, level=20)) == ["three"]


def test_who_follows_sees_each_line_once(path: Path, opened: Open) -> None:
    writer = opened()
    writer.put(line("before"))
    assert writer.flush()
    with StoreReader(path) as reader:
        place, _ = reader.last_lines(Filter(), 10)
        assert reader.lines_after(place, Filter(), 10) == (place, [])
        for number in range(5):
            writer.put(line(str(number), model="m:1"))
            writer.put(span())
        assert writer.flush()
        seen = []
        while True:
            place, lines = reader.lines_after(place, Filter(model="m"), 2)
            if not lines:
                break
            seen += [new.text("message") for new in lines]
        assert seen == ["0", "1", "2", "3", "4"]
        # What does not match is not looked at again.
        writer.put(line("other"))
        assert writer.flush()
        assert reader.lines_after(place, Filter(model="m"), 2) == (reader.end(), [])


def test_what_a_trace_is_linked_to_is_found_with_it(path: Path, opened: Open) -> None:
    writer = opened()
    writer.put(span(1, links=(SpanLink(OTHER, f"{4:016x}"), SpanLink(TRACE, f"{9:016x}"))))
    for one in (span(3), span(4, 3), span(5, 4), span(6, 3)):
        writer.put(replace(one, trace_id=OTHER))
    for number in range(3, 7):
        writer.put(line(f"of {number}", trace_id=OTHER, span_id=f"{number:016x}"))
    assert writer.flush()
    with StoreReader(path) as reader:
        (part,) = reader.linked(reader.trace(TRACE))
    assert [one.span_id[-1] for one in part.spans] == ["4", "5"]
    assert [one.text("message") for one in part.lines] == ["of 4", "of 5"]
    wanted = Filter(spans={TRACE: None, OTHER: frozenset(one.span_id for one in part.spans)})
    assert messages(path, wanted) == ["of 4", "of 5"]
    assert messages(path, wanted, count=1) == ["of 5"]


def test_a_trace_is_found_by_the_beginning_of_its_id(path: Path, opened: Open) -> None:
    writer = opened()
    writer.put(span(2, parent=1))
    writer.put(span(1))
    writer.put(line("late", 9 * SECOND, trace_id=TRACE))
    writer.put(line("early", trace_id=TRACE))
    writer.put(line("of another", trace_id=OTHER))
    assert writer.flush()
    with StoreReader(path) as reader:
        assert reader.trace_ids(TRACE[:12]) == [TRACE]
        assert reader.trace_ids("4bf9") == [OTHER, TRACE]
        assert reader.trace_ids("f") == []
        trace = reader.trace(TRACE)
        assert [one.span_id[-1] for one in trace.spans] == ["1", "2"]
        assert [one.text("message") for one in trace.lines] == ["early", "late"]
        assert reader.last_roots(10) == [span(1)]


@pytest.mark.parametrize("limit", [4 << 20, 7 << 20])
def test_the_oldest_goes_and_the_size_stays(limit: int, path: Path, opened: Open) -> None:
    writer = opened(limit)
    rounds, each = 16, 1000
    for number in range(rounds):
        for part in range(each):
            writer.put(line(f"{number}.{part} " + "x" * 1000, trace_id=f"{number:032x}"))
        assert writer.flush(60)
        assert on_disk(path) <= limit
    assert writer.dropped == 0
    kept = [message.split()[0] for message in messages(path)]
    every = [f"{number}.{part}" for number in range(rounds) for part in range(each)]
    assert kept == every[-len(kept) :]  # the newest, without a hole
    assert len(kept) * 1000 > limit / 3


def test_a_store_that_was_larger_shrinks(path: Path, opened: Open) -> None:
    writer = opened(16 << 20)
    for _ in range(7000):
        writer.put(line("x" * 1000))
    assert writer.flush(60)
    writer.close()
    assert on_disk(path) > 6 << 20
    second = opened(4 << 20)
    second.put(line("the newest"))
    assert second.flush(60)
    second.close()
    assert on_disk(path) <= 4 << 20
    assert messages(path)[-1] == "the newest"


def test_a_record_that_cannot_be_written_costs_itself_alone(path: Path, opened: Open) -> None:
    writer = opened()
    writer.put(line("far ahead", 2**70))
    assert writer.flush(60)
    writer.put(line("after"))
    assert writer.flush(60)
    assert writer.dropped == 1
    assert "after" in messages(path)


def test_times_stay_within_what_can_be_kept() -> None:
    fields = span_to_fields(span(end=2**70))
    assert span_from_fields(fields).end == MAX_TIME
    record = logging.makeLogRecord({"timestamp": "9999-01-01T00:00:00Z"})
    assert line_time(record) == MAX_TIME


def test_what_does_not_fit_is_dropped_and_told(path: Path, opened: Open) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")  # so that nothing is taken from the queue
        writer = opened(queue=10)
        for number in range(10):
            writer.put(line(str(number)))
        # The writer has taken some batch by now or will; either way no more than two queues fit.
        for number in range(10, 100):
            writer.put(line(str(number)))
        assert writer.dropped >= 80
        other.execute("COMMIT")
    other.close()
    assert writer.flush(60)
    writer.put(line("after"))
    assert writer.flush(60)
    kept = messages(path)
    assert kept[-1] == "after"
    (note,) = (message for message in kept if "were dropped here" in message)
    assert note.startswith(f"{writer.dropped} records")
    assert len(kept) == 100 - writer.dropped + 2


def test_two_controllers_share_a_store(path: Path, opened: Open) -> None:
    writers = [opened(), opened()]

    def fill(number: int) -> None:
        for part in range(200):
            writers[number].put(line(f"{number}.{part}"))
            if part % 20 == 0:
                writers[number].flush(60)

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(writer.flush(60) for writer in writers)
    assert [writer.dropped for writer in writers] == [0, 0]
    kept = messages(path)
    for number in range(2):
        assert [m for m in kept if m[0] == str(number)] == [f"{number}.{p}" for p in range(200)]


def test_a_store_is_for_its_user_alone(path: Path, opened: Open) -> None:
    writer = opened()
    writer.put(line())
    assert writer.flush()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


@pytest.mark.parametrize("rubbish", [b"not a database at all" * 100, None])
def test_a_broken_file_is_put_aside(
    rubbish: bytes | None, path: Path, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    writer = opened()
    for _ in range(500):
        writer.put(line("old"))
    assert writer.flush()
    writer.close()
    if rubbish is None:  # a page in the middle
        with path.open("r+b") as file:
            for page in range(1, 12):
                file.seek(page * 4096)
                file.write(b"\xff" * 4096)
    else:
        path.write_bytes(rubbish)
    second = opened()
    for _ in range(3):
        second.put(line("new"))
        assert second.flush()
    assert "new" in messages(path)
    assert path.with_suffix(".broken").exists()
    assert len([r for r in caplog.records if "cannot be kept" in r.getMessage()]) == 1


def test_a_store_that_is_removed_is_made_anew(path: Path, opened: Open) -> None:
    writer = opened()
    writer.put(line("one"))
    assert writer.flush()
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    writer.put(line("two"))
    assert writer.flush()
    assert messages(path) == ["two"]


def test_where_nothing_can_be_written_nothing_breaks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    writer = StoreWriter(tmp_path / "file" / "v1.sqlite3", schema.LEAST_BYTES)
    for _ in range(3):
        writer.put(line())
        assert writer.flush()
    writer.close()
    assert writer.dropped >= 3
    assert len([r for r in caplog.records if "cannot be kept" in r.getMessage()]) == 1


def test_no_store_no_lines(path: Path) -> None:
    with pytest.raises(NothingKeptError, match="there is no"):
        StoreReader(path)
    path.parent.mkdir()
    path.write_bytes(b"rubbish" * 1000)
    with StoreReader(path) as reader, pytest.raises(NothingKeptError, match="not a database"):
        reader.end()


def test_what_was_written_outlives_a_kill(path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from typing import Any
from headrace.telemetry.store.writer import StoreWriter
from tests.unit.telemetry.samples import line
writer = StoreWriter(Path({str(path)!r}), 4 << 20)
writer.put(line("last words"))
assert writer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=Path.cwd(), check=False, timeout=60)
    assert ended.returncode == -9
    assert messages(path) == ["last words"]
    assert os.access(path, os.R_OK)
