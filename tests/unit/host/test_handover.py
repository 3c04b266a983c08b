"""The report pipe's lines and its writer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from headrace.host import handover
from headrace.host.handover import Draining, Failed, Listening, Loading, Ready, ReportWriter


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
