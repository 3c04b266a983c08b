"""What a person finds out without any back end: from the line of an error to its cause."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.client import Client
from headrace.telemetry.store.schema import store_path
from headrace_server.store import Store
from tests.e2e.conftest import TINY
from tests.e2e.harness import (
    MODEL,
    PATIENCE,
    Place,
    StartController,
    eventually,
    headrace,
    python_path,
    start_headrace,
)
from tests.unit.convert.tiny import write_gguf

STREAM = "headrace.v1.CompletionService/StreamCompletion"
SECRET = "xylophone-quartz"
CRASHING = "crashing:q4"
BOMB = """
import os, sys
words = sys.orig_argv
if "headrace_runner" in words and words[words.index("--name") + 1] == "crashing:q4":
    os.write(2, b"first words\\n" + b"libquartz: cannot terminate\\n")
    os.abort()
"""


def kept(place: Place, trace_id: str, *names: str) -> dict[str, Any]:
    """A trace, once the call's own span is there, and spans of these names: which of two processes
    is the first to have its spans written is open."""

    def look() -> dict[str, Any] | None:
        ended = headrace(place, "trace", trace_id, "--json", check=False)
        told: dict[str, Any] | None = None if ended.returncode else json.loads(ended.stdout)
        if told is None or not {*names} <= {span["name"] for span in told["spans"]}:
            return None
        calls = [span for span in own(told) if span["name"] == STREAM and span["kind"] == "SERVER"]
        return told if calls else None

    found: dict[str, Any] | None = eventually(look)
    assert found is not None
    return found


def own(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """The spans of the controller."""
    return [span for span in trace["spans"] if span["service"] == "headrace-controller"]


def orphans(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Spans whose parent is missing, but for the call's own, whose parent is the client's."""
    known = {span["span_id"] for span in trace["spans"]}
    lost = [span for span in trace["spans"] if span.get("parent_id") not in known]
    return [span for span in lost if not (span["kind"] == "SERVER" and span in own(trace))]


def test_a_trace_of_both_processes_is_kept_and_outlives_the_controller(
    home: Path, start: StartController
) -> None:
    controller = start(home=home)
    arguments = ("--max-tokens", "4", "--json")
    shown = json.loads(headrace(controller, "run", TINY, SECRET, *arguments).stdout)
    told = kept(controller, shown["trace_id"], f"chat {TINY}", "headrace.load.weights")
    services = {(span["service"], span["name"]) for span in told["spans"]}
    assert ("headrace-runner", f"chat {TINY}") in services
    assert {name for service, name in services if service == "headrace-runner"} >= {
        *(STREAM, "headrace.queue", "headrace.prefill", "headrace.decode"),
    }
    assert orphans(told) == []
    assert {line["service"] for line in told["lines"]} == {
        "headrace-controller",
        "headrace-runner",
    }
    assert {line["trace_id"] for line in told["lines"]} == {shown["trace_id"]}

    controller.close()
    drawn = headrace(controller, "trace", shown["trace_id"][:10]).stdout
    assert f"chat {TINY}" in drawn
    assert "loaded in" in drawn
    assert f"{shown['trace_id'][:12]}  " in headrace(controller, "trace").stdout
    assert "stream ended" in headrace(controller, "logs", TINY.partition(":")[0]).stdout
    for file in store_path(home).parent.iterdir():
        assert SECRET.encode() not in file.read_bytes(), "prompts are not recorded"


def test_from_the_message_of_a_failed_load_to_what_its_runner_said(
    home: Path, tmp_path: Path, start: StartController
) -> None:
    write_gguf(tmp_path / "other.gguf", tied=False)
    asyncio.run(Store(home).import_model(tmp_path / "other.gguf", CRASHING))
    path = python_path(tmp_path / "python", BOMB)
    controller = start(home=home, extra={"PYTHONPATH": path})
    failed = headrace(controller, "run", CRASHING, "x", check=False)
    assert failed.returncode == 1
    hint = re.search(r"`headrace (trace [0-9a-f]{8})` shows", failed.stderr)
    assert hint is not None, failed.stderr
    trace_id = failed.stderr.split("trace ")[1].split()[0]
    kept(controller, trace_id)
    drawn = headrace(controller, *hint[1].split()).stdout
    assert "NATIVE_ABORT" in drawn
    assert "libquartz: cannot terminate" in drawn
    lines = headrace(controller, "logs", "--trace", trace_id, "--level", "warning").stdout
    assert "libquartz: cannot terminate" in lines


def test_a_load_that_another_has_caused_is_found_from_the_one_who_waited(
    home: Path, tmp_path: Path
) -> None:
    """A private controller loads at once, before the request comes."""
    write_gguf(tmp_path / "other.gguf", tied=False)
    asyncio.run(Store(home).import_model(tmp_path / "other.gguf", CRASHING))
    place = Place(home, {"PYTHONPATH": python_path(tmp_path / "python", BOMB)})
    try:
        failed = headrace(place, "run", CRASHING, "x", check=False)
        assert failed.returncode == 1
        trace_id = failed.stderr.split("trace ")[1].split()[0]
        for command in (("trace", trace_id[:8]), ("logs", "--trace", trace_id[:8])):
            assert "libquartz: cannot terminate" in headrace(place, *command).stdout
    finally:
        place.close()


def test_a_killed_runner_leaves_the_attempt_and_no_orphan(
    home: Path, start: StartController
) -> None:
    controller = start("--preload", MODEL, home=home)
    with Client(controller.target, timeout=PATIENCE) as client:
        stream = client.stream_completion(MODEL, "Count.", max_tokens=200, temperature=0)
        with stream:
            texts = iter(stream.text)
            next(texts)
            controller.runner().kill()
            for _ in texts:
                pass
            whole = stream.collect()
    assert whole.completed.resumed == 1
    told = kept(controller, stream.trace_id, f"text_completion {MODEL}")
    attempts = [span for span in own(told) if span["name"] == STREAM and span["kind"] == "CLIENT"]
    assert [span.get("status", "UNSET") for span in attempts] == ["ERROR", "UNSET"]
    assert [link["span_id"] for link in attempts[1]["links"]] == [attempts[0]["span_id"]]
    assert orphans(told) == []
    assert "after StreamCompletion on r1" in headrace(controller, "trace", stream.trace_id).stdout


def test_a_private_controller_keeps_traces_too(home: Path) -> None:
    place = Place(home)
    try:
        arguments = ("--max-tokens", "2", "--json")
        shown = json.loads(headrace(place, "run", TINY, "x", *arguments).stdout)
        # Its controller has ended, and written all before.
        assert f"chat {TINY}" in headrace(place, "trace", shown["trace_id"]).stdout
    finally:
        place.close()


def test_what_was_logged_outlives_a_killed_controller(home: Path, start: StartController) -> None:
    controller = start(home=home)
    headrace(controller, "load", TINY)
    eventually(lambda: "loaded in" in headrace(controller, "logs", check=False).stdout)
    controller.kill()
    assert "loaded in" in headrace(controller, "logs", TINY).stdout


def test_a_runner_that_was_a_spare_reports_its_spans(home: Path, start: StartController) -> None:
    controller = start("--spare", home=home)
    headrace(controller, "load", TINY)

    def spare() -> bool:
        return any("--spare" in process.cmdline() for process in controller.runners())

    assert eventually(spare)
    headrace(controller, "stop", TINY)
    arguments = ("--max-tokens", "2", "--json")
    shown = json.loads(headrace(controller, "run", TINY, "x", *arguments).stdout)
    told = kept(controller, shown["trace_id"], f"chat {TINY}")
    assert {span["instance"] for span in told["spans"] if span["service"] == "headrace-runner"} == {
        "r2"
    }
    assert "by the spare" in headrace(controller, "trace", shown["trace_id"]).stdout


def test_who_follows_sees_what_happens(home: Path, start: StartController) -> None:
    controller = start(home=home)
    eventually(lambda: "listening" in headrace(controller, "logs", check=False).stdout)
    with start_headrace(controller, "logs", TINY, "--follow", "--json") as following:
        assert following.stdout is not None
        headrace(controller, "load", TINY)
        messages = (json.loads(line)["message"] for line in following.stdout)
        assert next(message for message in messages if message.startswith("loaded in "))
        following.send_signal(signal.SIGINT)
        assert following.wait(PATIENCE) == 130


def test_nothing_is_kept_where_it_is_off(home: Path, start: StartController) -> None:
    controller = start("--telemetry-store", "off", home=home)
    headrace(controller, "load", TINY)
    assert "--report-spans" not in controller.runner().cmdline()
    assert not store_path(home).parent.exists()
    refused = headrace(controller, "logs", check=False)
    assert refused.returncode == 3
    assert "--telemetry-store" in refused.stderr


def test_top_shows_who_runs_and_how_fast(home: Path, start: StartController) -> None:
    controller = start("--preload", MODEL, home=home)
    with Client(controller.target, timeout=PATIENCE) as client:
        client.complete(MODEL, "x", max_tokens=1)
        with client.stream_completion(MODEL, "Count.", max_tokens=4000, ignore_eos=True) as stream:
            next(iter(stream.text))

            def busy() -> dict[str, Any] | None:
                ended = headrace(controller, "top", "--json", "--interval", "500ms")
                told: dict[str, Any] = json.loads(ended.stdout)
                return told if told["tokens_per_second"] else None

            told = eventually(busy)
            assert told is not None
            (runner,) = told["runners"]
            assert (runner["model"], runner["active_requests"]) == (MODEL, 1)
            assert runner["report"]["running"] == 1
            assert runner["tokens_per_second"] == told["tokens_per_second"]
            assert 0 < told["memory_bytes"] < told["memory_budget_bytes"]
            resident = psutil.Process(controller.runner().pid).memory_info().rss
            assert runner["report"]["resident_bytes"] == pytest.approx(resident, rel=0.3)
            drawn = headrace(controller, "top", "--interval", "100ms").stdout
            seen = re.search(rf"{MODEL} +{runner['id']} +serving +1 ", drawn)
            assert seen, drawn + headrace(controller, "logs").stdout
    # Looking is part of no trace.
    assert "ListRunners" not in headrace(controller, "trace").stdout
