"""The report pipe's lines and its writer."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import pytest

from headrace.host import handover
from headrace.host.handover import (
    Draining,
    Ended,
    Failed,
    Listening,
    Loading,
    Ready,
    ReportWriter,
)
from headrace.telemetry.records import SpanEvent, SpanLink
from tests.unit.telemetry.samples import TRACE, span


@pytest.fixture
def pipe() -> Iterator[tuple[BinaryIO, ReportWriter]]:
    read_fd, write_fd = os.pipe()
    writer = ReportWriter(write_fd)
    with os.fdopen(read_fd, "rb") as reader:
        yield reader, writer
        writer.close()


@pytest.mark.parametrize(
    "report",
    [
        Listening("unix:/run/é/r.sock", 42, "sha256:ab"),
        Loading(0.25),
        Ready(),
        Draining(2.5),
        Failed("MODEL_CORRUPT", "cut\nshort", "model.safetensors"),
        Failed("LOAD_FAILED", "lone surrogate \udcff", None),
        Ended(span(2, parent=1, events=(SpanEvent("e", 3),), attributes={"path": "\udcff\n"})),
    ],
)
def test_a_report_survives_the_pipe_as_one_line(report: handover.Report) -> None:
    line = handover.encode(report)
    assert line.count(b"\n") == 1
    assert handover.decode(line) == report


def test_an_unknown_field_is_ignored() -> None:
    assert handover.decode(b'{"event":"ready","since":"the next release"}') == Ready()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"ready",
        b"[]",
        b"\xff",
        b'{"event":"sleeping"}',
        b'{"event":[]}',
        b'{"event":"loading"}',
        b'{"event":"loading","fraction":"much"}',
        b'{"event":"listening","address":"unix:/r","pid":1e999,"digest":""}',
        b'{"event":"failed","cause":"BORED","message":""}',
        b'{"event":"span","trace_id":"1"}',
    ],
)
def test_what_is_no_report_is_refused(line: bytes) -> None:
    with pytest.raises(handover.HandoverError):
        handover.decode(line)


def test_the_longest_failure_still_fits_an_atomic_write(
    pipe: tuple[BinaryIO, ReportWriter],
) -> None:
    reader, writer = pipe
    writer.failed("LOAD_FAILED", "\0" * 10_000, "\udcff" * 10_000)
    line = reader.readline()
    assert len(line) <= handover.MAX_LINE
    assert isinstance(handover.decode(line), Failed)


def test_progress_is_thinned_so_that_an_unread_pipe_never_fills(
    pipe: tuple[BinaryIO, ReportWriter],
) -> None:
    reader, writer = pipe
    for step in range(100_001):
        writer.loading(step / 100_000)
    writer.close()
    lines = reader.readlines()
    assert 90 <= len(lines) <= 101
    assert handover.decode(lines[0]) == Loading(0.0)


def test_a_vanished_reader_does_not_disturb_the_runner() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    writer = ReportWriter(write_fd)
    writer.ready()
    writer.ready()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write_fd)


def test_grandchildren_do_not_inherit_the_pipe() -> None:
    read_fd, write_fd = os.pipe()
    os.set_inheritable(write_fd, True)
    writer = ReportWriter(write_fd)
    assert not os.get_inheritable(write_fd)
    writer.close()
    os.close(read_fd)


def test_without_a_pipe_nothing_happens() -> None:
    writer = ReportWriter(None)
    writer.listening("unix:/r", "sha256:ab")
    writer.failed("LOAD_FAILED", "no")
    writer.close()


def test_a_span_survives_the_pipe(pipe: tuple[BinaryIO, ReportWriter]) -> None:
    reader, writer = pipe
    sent = [span(1, attributes={"n": 1}), span(2, parent=1)]
    for one in sent:
        writer.ended(one)
    assert [handover.decode(reader.readline()) for _ in sent] == [Ended(one) for one in sent]


@pytest.mark.parametrize(
    "much",
    [
        {"attributes": {f"key{n}": "\0" * 5000 for n in range(100)}},
        {"attributes": {"list": ["x" * 100] * 100, "kept": "yes"}},
        {"events": tuple(SpanEvent("e", 1, {"text": "é" * 5000}) for _ in range(100))},
        {"links": tuple(SpanLink(TRACE, "0" * 16, {"n": "x" * 999}) for _ in range(100))},
        {"name": "\0" * 10_000, "message": "\0" * 10_000},
    ],
)
def test_a_span_that_is_too_long_loses_the_least_of_it(much: dict[str, Any]) -> None:
    line = handover.encode(Ended(span(2, parent=1, **much)))
    assert len(line) <= handover.MAX_LINE
    report = handover.decode(line)
    assert isinstance(report, Ended)
    assert (report.span.span_id, report.span.parent_id) == (f"{2:016x}", f"{1:016x}")
    assert report.span.attributes.get("kept", "yes") == "yes"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say what is unread")
def test_spans_that_nobody_reads_wait_and_leave_room_for_reports(
    pipe: tuple[BinaryIO, ReportWriter],
) -> None:
    reader, writer = pipe
    text = "x" * 2100  # of a length that wastes most of the pipe's pages
    for number in range(1, 5000):
        writer.ended(span(number, attributes={"text": text}))
    for step in range(101):
        writer.loading(step / 100)
    writer.failed("LOAD_FAILED", "\0" * 10_000, "\udcff" * 10_000)  # none of them blocked
    got: list[handover.Report] = []
    while not got or not isinstance(got[-1], Failed):
        got.append(handover.decode(reader.readline()))
    assert sum(isinstance(report, Loading) for report in got) > 80
    # Those that waited come once there is somebody to take them, in their order and as far as
    # they fitted; the others are gone.
    got += [handover.decode(reader.readline()) for _ in range(1000)]
    numbers = [int(report.span.span_id, 16) for report in got if isinstance(report, Ended)]
    assert numbers == [*range(1, len(numbers) + 1)]


def test_what_waits_is_sent_before_the_end() -> None:
    read_fd, write_fd = os.pipe()
    writer = ReportWriter(write_fd)
    for number in range(1, 11):
        writer.ended(span(number))
    writer.close()
    writer.ended(span(11))
    with os.fdopen(read_fd, "rb") as reader:
        assert len(reader.readlines()) == 10


def test_a_reader_that_is_gone_ends_the_sending_of_spans() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    writer = ReportWriter(write_fd)
    for number in range(1, 5000):
        writer.ended(span(number))
    writer.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write_fd)
