"""Lines out of bytes, whatever their length, and a bounded memory of the last ones."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.runners.output import LineSplitter, RunnerOutput, Tail, parse_record
from headrace_server.runners.spec import RunnerSpec


@given(st.binary(max_size=200), st.integers(1, 50), st.integers(4, 40))
def test_no_byte_is_lost_however_it_is_cut(data: bytes, chunk: int, piece: int) -> None:
    text = data.decode("latin-1").encode()  # any text, as UTF-8
    splitter = LineSplitter(piece)
    lines: list[str] = []
    for start in range(0, len(text), chunk):
        lines += splitter.feed(text[start : start + chunk])
        assert len(splitter._held) <= piece
    lines += splitter.flush()
    assert "".join(lines) == text.decode().replace("\n", "")
    assert all(len(line.encode()) <= piece for line in lines)


def test_lines() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"one\ntw") == ["one"]
    assert splitter.feed(b"o\n\nthr") == ["two", ""]
    assert splitter.flush() == ["thr"]
    assert splitter.flush() == []


def test_bytes_that_are_not_utf_8_are_replaced() -> None:
    assert LineSplitter(4).feed(b"\x80" * 9 + b"\n") != []
    assert LineSplitter().feed(b"a\xffb\n") == ["a\N{REPLACEMENT CHARACTER}b"]


def test_the_tail_is_bounded_and_forgets_the_oldest() -> None:
    tail = Tail(limit=30)
    for number in range(100):
        tail.add(f"line {number}", now=float(number))
    assert tail.since(0.0) == ["line 97", "line 98", "line 99"]


def test_old_output_does_not_explain_a_new_failure() -> None:
    tail = Tail()
    tail.add("out of memory", now=100.0)
    tail.add("terminating", now=3700.0)
    assert tail.since(3700.0) == ["terminating"]


@pytest.mark.parametrize(
    "line", ["", "text", "{", "[1]", '{"level": "INFO"}', "{" * 100_000, '{"a":' * 100_000]
)
def test_what_is_not_a_log_record(line: str) -> None:
    assert parse_record(line) is None


async def pump(*chunks: bytes) -> RunnerOutput:
    stream = asyncio.StreamReader()
    for chunk in chunks:
        stream.feed_data(chunk)
    stream.feed_eof()
    output = RunnerOutput(RunnerSpec("r1", "tiny", "sha256:ab", Path("/m")))
    await output.pump(stream)
    return output


async def test_a_record_cannot_overwrite_its_runner_or_pythons_attributes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fields = {"level": "WARNING", "message": "50% %s", "runner_id": "r2", "args": [1], "msg": "x"}
    await pump(json.dumps(fields).encode() + b"\n")
    (record,) = caplog.records
    assert record.getMessage() == "50% %s"
    assert vars(record)["runner_id"] == "r1"
    assert record.args == ()


async def test_an_unknown_level_is_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await pump(b'{"level": "LOUD", "message": "a"}\n{"level": 7, "message": "b"}\n')
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]


async def test_log_records_stay_out_of_the_tail() -> None:
    output = await pump(b'{"level": "ERROR", "message": "out of memory"}\nabort\n')
    assert output.tail.since(0.0) == ["abort"]
