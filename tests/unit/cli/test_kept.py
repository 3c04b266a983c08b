"""`logs` and `trace` on a store that a controller has left behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.app import run
from headrace.telemetry.records import SpanEvent, SpanLink
from headrace.telemetry.store.schema import LEAST_BYTES, store_path
from headrace.telemetry.store.writer import StoreWriter
from tests.unit.cli.terminal import drawn
from tests.unit.telemetry.samples import SECOND, TRACE, line, span

OTHER = "4bf92f35" + "0" * 24
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


@pytest.fixture
def store(home: Path) -> Iterator[StoreWriter]:
    writer = StoreWriter(store_path(home), LEAST_BYTES)
    yield writer
    writer.close()


@pytest.fixture
def headrace(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def story(store: StoreWriter) -> None:
    """A stream whose runner died, that went on with another."""
    now = time.time_ns()

    def at(seconds: float) -> int:
        return now - 60 * SECOND + int(seconds * 1e9)

    call = "headrace.v1.CompletionService/StreamCompletion"
    died = SpanEvent(
        "headrace.runner.died",
        at(5),
        {
            "headrace.runner.cause_of_death": "NATIVE_ABORT",
            "headrace.runner.last_words": "Fatal Python error: Aborted\n  at step\x1b[31m",
            "exception.message": "the runner crashed in native code",
        },
    )
    attempt = {"kind": "CLIENT", "name": call}
    spans = [
        span(1, 9, name=call, kind="SERVER", start=at(0), end=at(10), local_root=True),
        span(2, 1, name="headrace.queue", start=at(0), end=at(1)),
        span(
            3,
            1,
            **attempt,
            start=at(1),
            end=at(5),
            status="ERROR",
            message="UNAVAILABLE",
            attributes={"headrace.runner.id": "r1", "error.type": "UNAVAILABLE"},
            events=(died,),
        ),
        span(
            4,
            1,
            **attempt,
            start=at(5),
            end=at(10),
            attributes={"headrace.runner.id": "r2", "headrace.attempt.number": 2},
            links=(SpanLink(TRACE, f"{3:016x}"),),
        ),
        span(
            5,
            4,
            name="chat m:1",
            service="headrace-runner",
            instance="r2",
            start=at(6),
            end=at(10),
            local_root=True,
            attributes={"gen_ai.usage.output_tokens": 7, "gen_ai.request.model": "m:1"},
        ),
    ]
    for one in spans:
        store.put(one)
    common: dict[str, Any] = {"model": "m:1", "trace_id": TRACE}
    store.put(line("moving on", at(5), 30, runner_id="r1", cause="NATIVE_ABORT", **common))
    store.put(line("it is done", at(10), service="headrace-runner", runner_id="r2", **common))
    store.put(line("of another", at(11), 40, model="n:1", trace_id=OTHER, exception="E\n  why"))
    store.put(line("of nobody", at(12), 10))
    assert store.flush()


DRAWN = """\
controller StreamCompletion                        10.0 s  ████████████████████████████████████████
controller ├─ queue                                1.00 s  ████
controller ├─ StreamCompletion on r1               4.00 s      ████████████████
           │    UNAVAILABLE
           │    +4.00 s runner died: NATIVE_ABORT: the runner crashed in native code
           │      last_words:
           │        Fatal Python error: Aborted
           │          at step\\x1b[31m
controller └─ StreamCompletion on r2  attempt 2    5.00 s                      ████████████████████
                after StreamCompletion on r1 (controller)
r2            └─ chat m:1  7 out                   4.00 s                          ████████████████

  +5.00 s WARNING controller moving on  cause=NATIVE_ABORT  model=m:1  runner=r1
  +10.0 s INFO    r2         it is done  model=m:1
"""


def test_logs_are_filtered_and_plain_in_a_pipe(store: StoreWriter, headrace: Run) -> None:
    story(store)
    code, out, err = headrace("logs")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert re.fullmatch(
        r"(\S+ )?\d\d:\d\d:\d\d\.\d{3} WARNING controller moving on  cause=NATIVE_ABORT  "
        r"model=m:1  runner=r1  trace=4bf92f35",
        lines[0],
    )
    assert "INFO    r2         it is done  model=m:1" in lines[1]
    assert lines[3:5] == ["    E", "      why"]
    assert "\x1b" not in out
    said = ["moving on", "it is done", "of another", "of nobody"]

    def messages(*arguments: str) -> list[str]:
        found = headrace("logs", *arguments, "--json")[1].splitlines()
        return [json.loads(line)["message"] for line in found]

    assert messages() == said
    assert messages("m") == said[:2]
    assert messages("n:1") == said[2:3]
    assert messages("--trace", TRACE[:12]) == said[:2]
    assert messages("--level", "warning") == [said[0], said[2]]
    assert messages("--since", "51s") == said[1:]
    assert messages("-n", "2") == said[2:]
    # In one trace the trace is not told again and again.
    assert "trace=" not in headrace("logs", "--trace", TRACE)[1]
    code, out, err = headrace("logs", "nobody")
    assert (code, out, err) == (0, "", "no line is kept that matches\n")


@pytest.mark.parametrize("command", [("logs",), ("trace",), ("trace", TRACE)])
def test_where_nothing_is_kept(command: tuple[str, ...], home: Path, headrace: Run) -> None:
    code, out, err = headrace(*command)
    assert (code, out) == (3, "")
    assert f"there is no {store_path(home)}" in err
    assert "--telemetry-store" in err


def test_which_trace_is_meant(store: StoreWriter, headrace: Run) -> None:
    story(store)
    for text in (TRACE, TRACE[:9], TRACE.upper(), f"00-{TRACE}-{1:016x}-01"):
        assert headrace("trace", text)[1].startswith(f"trace {TRACE}  m:1  10.0 s  at ")
    code, _, err = headrace("trace", "4bf")
    assert code == 2
    assert f"begins several: {OTHER}, {TRACE}" in err
    code, _, err = headrace("trace", "0af7")
    assert code == 3
    assert "nothing is kept of a trace 0af7" in err
    assert headrace("trace", "xyz")[0] == headrace("logs", "--trace", "")[0] == 2


def test_a_trace_leads_to_the_cause(
    store: StoreWriter, headrace: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    story(store)
    out = headrace("trace", TRACE[:12])[1]
    assert out.partition("\n\n")[2] == DRAWN
    # Where there is no Unicode the same is told in ASCII.
    monkeypatch.setattr("headrace.cli.trace.draws_unicode", lambda _: False)
    drawn = headrace("trace", TRACE)[1].splitlines()
    assert drawn[3] == f"controller |- queue{' ' * 32}1.00 s  ####"
    assert drawn[-4].startswith("r2            `- chat m:1")
    assert "headrace.runner.id = r2" in headrace("trace", TRACE, "--verbose")[1]


def test_a_trace_without_spans_has_its_lines(store: StoreWriter, headrace: Run) -> None:
    story(store)
    out = headrace("trace", OTHER)[1]
    assert out.splitlines()[0].endswith("no span is kept: it still runs, or was not recorded")
    assert "of another" in out


def test_a_trace_as_json(store: StoreWriter, headrace: Run) -> None:
    story(store)
    told = json.loads(headrace("trace", TRACE, "--json")[1])
    assert told["trace_id"] == TRACE
    assert [one["span_id"][-1] for one in told["spans"]] == ["1", "2", "3", "4", "5"]
    assert [one["message"] for one in told["lines"]] == ["moving on", "it is done"]


def test_the_last_traces_are_listed(store: StoreWriter, headrace: Run) -> None:
    story(store)
    lines = headrace("trace")[1].splitlines()
    assert lines[0].split() == ["TRACE", "BEGAN", "TOOK", "CALL", "MODEL", "ENDED"]
    assert lines[1].startswith(f"{TRACE[:12]}  ")
    assert lines[1].split()[-5:] == ["10.0", "s", "StreamCompletion", "-", "ok"]
    assert [one["span_id"][-1] for one in json.loads(headrace("trace", "--json")[1])] == ["1"]


def test_a_trace_is_listed_by_its_first_span_where_many_ran_at_once(
    store: StoreWriter, headrace: Run
) -> None:
    ids = [f"{number:032x}" for number in range(1, 31)]
    for number, service in ((1, "headrace-controller"), (2, "headrace-runner")):
        for trace in ids:
            store.put(span(number, number - 1, trace_id=trace, service=service, local_root=True))
    assert store.flush(10)
    listed = json.loads(headrace("trace", "--json")[1])
    assert [one["trace_id"] for one in listed] == ids[:9:-1]
    assert {one["service"] for one in listed} == {"headrace-controller"}


def test_who_follows_is_told_of_new_lines(store: StoreWriter, home: Path) -> None:
    story(store)
    command = [sys.executable, "-m", "headrace.cli.main", "logs", "m", "--follow", "-n", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "it is done" in process.stdout.readline()
            store.put(line("not of it", model="n:1"))
            store.put(line("new", model="m:1"))
            assert "new" in process.stdout.readline()
            # A removed store is none until the next line, of which whoever follows is told.
            assert store.flush(10)
            for file in store_path(home).parent.iterdir():
                file.unlink()
            time.sleep(1.0)  # noqa: TID251 - so that it is missed by some looks
            store.put(line("newer", model="m:1"))
            assert "newer" in process.stdout.readline()
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


@pytest.mark.parametrize("command", [("logs",), ("trace", TRACE)])
def test_colours_are_for_terminals(
    command: tuple[str, ...], store: StoreWriter, home: Path
) -> None:
    story(store)

    plain = drawn(command, NO_COLOR="1")
    coloured = drawn(command)
    assert "\x1b[33m" in coloured
    # A background's own colours are never taken for granted.
    assert not set(re.findall(r"\x1b\[(\d+(?:;\d+)*)m", coloured)) & {"30", "37", "97", "90"}
    assert "[33m" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == re.sub(r"\x1b\[[\d;]*m", "", plain)
