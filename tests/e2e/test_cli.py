"""The command line, as a person and a script use it: real processes and nothing else."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import TINY
from tests.e2e.harness import (
    ANSWER,
    MODEL,
    PATIENCE,
    QUESTION,
    Controller,
    Place,
    StartController,
    gone,
    headrace,
    start_headrace,
)

GREEDY = ("--temperature", "0")
LONG = (*GREEDY, "--regex", "Le( a){900}", "--max-tokens", "2000")
"""An answer that does not end before a signal comes."""


def told(place: Place, *arguments: str) -> Any:
    """What a command prints with --json."""
    return json.loads(headrace(place, *arguments, "--json").stdout)


def test_models_come_and_go(home: Path, start: StartController, tiny_gguf: Path) -> None:
    controller = start(home=home)
    assert [model["name"] for model in told(controller, "list")] == [MODEL, TINY]
    shown = told(controller, "show", MODEL)
    assert (shown["architecture"], shown["quantization"]) == ("llama", "Q4_1")
    assert (shown["context_length"], shown["license"].lower()) == (8192, "apache-2.0")
    assert shown["runners"] == []
    assert shown in told(controller, "list")

    # Each is loaded, seen, and unloaded.
    assert told(controller, "ps") == []
    loaded = told(controller, "load", TINY, "--keep-alive", "1h")
    (runner,) = told(controller, "ps")
    assert runner["id"] == loaded["runner"]["id"] == "r1"
    assert (runner["model"], runner["state"], runner["pinned"]) == (TINY, "serving", False)
    assert runner["active_requests"] == 0
    assert 3500 < runner["expires_in"] <= 3600
    assert runner["pid"] == controller.runner().pid
    process = controller.runner()
    assert told(controller, "stop", TINY) == [{"model": TINY, "stopped": 1}]
    assert told(controller, "stop", TINY) == [{"model": TINY, "stopped": 0}]
    assert gone([process], 1.0)
    assert told(controller, "ps") == []

    imported = told(controller, "import", str(tiny_gguf), "second")
    assert imported["name"] == "second:latest"
    assert imported["digest"] == told(controller, "show", TINY)["digest"]
    (removed,) = told(controller, "rm", "second")
    assert removed == {"model": "second", "freed_bytes": 0}
    (removed,) = told(controller, "rm", TINY)
    assert removed["freed_bytes"] > 0
    assert [model["name"] for model in told(controller, "list")] == [MODEL]
    missing = headrace(controller, "show", "smolm2:135m", check=False)
    assert missing.returncode == 3
    assert f"did you mean '{MODEL}'" in missing.stderr

    # People see columns.
    assert headrace(controller, "list").stdout.splitlines()[1].startswith(f"{MODEL}  text")
    assert "8192 tokens" in headrace(controller, "show", MODEL).stdout
    assert "removed" in headrace(controller, "rm", MODEL).stdout


def test_tokenize(controller: Controller) -> None:
    shown = told(controller, "tokenize", MODEL, "こん", "--pieces")
    assert shown["token_ids"] == [7365, 237, 10391, 237]
    pieces = [(piece["piece"], piece["start"], piece["end"]) for piece in shown["pieces"]]
    assert pieces == [("e381", 0, 2), ("93", 2, 3), ("e382", 3, 5), ("93", 5, 6)]
    assert headrace(controller, "tokenize", MODEL, stdin="こん").stdout == "7365 237 10391 237\n"


def test_a_prompt_that_is_piped_in(controller: Controller) -> None:
    ended = headrace(controller, "run", MODEL, *GREEDY, "--max-tokens", "8", stdin=QUESTION)
    assert ANSWER.startswith(ended.stdout.removesuffix("\n"))
    assert ended.stdout.startswith("Le Grand Paris")
    empty = headrace(controller, "run", MODEL, stdin=" \n", check=False)
    assert empty.returncode == 2


def test_a_reader_that_leaves(controller: Controller) -> None:
    """As in `headrace run … | head -c 1`."""
    with start_headrace(controller, "run", MODEL, QUESTION, *GREEDY, "--max-tokens", "500") as run:
        assert run.stdout is not None
        assert run.stdout.read(1) == "L"
        run.stdout.close()
        assert run.wait(PATIENCE) == 1
        assert run.stderr is not None
        assert "Traceback" not in run.stderr.read()


def test_health_is_an_exit_code(controller: Controller, place: Place) -> None:
    assert headrace(controller, "health").stdout == "serving\n"
    unloaded = headrace(controller, "health", f"model/{TINY}", check=False)
    assert (unloaded.returncode, unloaded.stderr) == (4, "not serving\n")
    unknown = headrace(controller, "health", "model/none", check=False)
    assert unknown.returncode == 3
    # An exporter that is out of reach costs a probe no time.
    controller.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://192.0.2.1:4317"
    try:
        assert headrace(controller, "health", "--timeout", "30").returncode == 0
    finally:
        del controller.environment["OTEL_EXPORTER_OTLP_ENDPOINT"]
    nobody = headrace(place, "health", "--timeout", "0.5", check=False)
    assert nobody.returncode == 4
    assert headrace(place, "health", "--timeout", "0", check=False).returncode == 2


def test_wrong_requests(controller: Controller) -> None:
    for arguments, code, words in (
        (("run", MODEL, "x", "--temperature", "-1"), 2, "sampling.temperature"),
        (("run", MODEL, "x", "--top-p", "2"), 2, "sampling.top_p"),
        (("run", MODEL, "x", "--seed", "-1"), 2, "sampling.seed"),
        (("run", "../etc/passwd", "x"), 2, "model name"),
        (("run", "nothing-like-it", "x"), 3, "nothing-like-it"),
        (("frobnicate",), 2, "frobnicate"),
        (("run",), 2, "MODEL"),
    ):
        ended = headrace(controller, *arguments, check=False)
        assert ended.returncode == code, ended.stderr
        assert words in ended.stderr
        assert "Traceback" not in ended.stderr


def left_nothing(place: Place) -> None:
    assert place.processes() == []
    assert list(place.sockets.iterdir()) == []


def test_run_without_a_controller_leaves_nothing(place: Place) -> None:
    ended = headrace(place, "run", MODEL, QUESTION, *GREEDY, "--max-tokens", "8")
    assert ended.stdout.startswith("Le Grand Paris")
    left_nothing(place)
    for command in ("ps", "load"):
        arguments = (command, *([MODEL] if command == "load" else []))
        refused = headrace(place, *arguments, check=False)
        assert refused.returncode == 4
        assert "headrace serve" in refused.stderr
    assert [model["name"] for model in told(place, "list")] == [MODEL, TINY]
    left_nothing(place)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_in_the_middle_of_an_answer(
    number: signal.Signals, code: int, place: Place
) -> None:
    with start_headrace(place, "run", MODEL, QUESTION, *LONG) as run:
        assert run.stdout is not None
        assert run.stdout.read(2) == "Le"
        started = place.processes()
        assert len(started) == 3  # the command, its controller, the runner
        run.send_signal(number)
        # Not by communicate(): more than was read may be in a buffer that it passes by.
        assert run.stderr is not None
        out, errors = run.stdout.read(), run.stderr.read()
        assert run.wait(PATIENCE) == code, errors
        assert "Traceback" not in errors
        assert re.fullmatch(r"( a)* ?\n?", out)
    left_nothing(place)


def test_sigkill_in_the_middle_of_an_answer(place: Place) -> None:
    with start_headrace(place, "run", MODEL, QUESTION, *LONG) as run:
        assert run.stdout is not None
        assert run.stdout.read(2) == "Le"
        others = [process for process in place.processes() if process.pid != run.pid]
        run.kill()
        run.communicate(timeout=PATIENCE)
    # Nobody was left to tell them, and still they go.
    assert len(others) == 2
    assert gone(others, 10.0)
    assert place.processes() == []


def test_a_private_controller_that_cannot_come_up(tmp_path: Path) -> None:
    """Its last words are shown."""
    home = tmp_path / "home"
    home.write_text("not a directory")
    place = Place(home)
    try:
        ended = headrace(place, "run", MODEL, "x", check=False)
        assert ended.returncode != 0
        assert ended.stdout == ""
        assert "error: " in ended.stderr
        left_nothing(place)
    finally:
        place.close()


def test_help_and_doctor(place: Place) -> None:
    for arguments in ((), ("--help",), ("run", "--help"), ("serve", "--help")):
        ended = headrace(place, *arguments, check=False)
        assert "Usage" in ended.stdout + ended.stderr or "usage" in ended.stdout
    findings = told(place, "doctor")
    assert {"platform", "mlx", "machine", "blas"} <= {finding["topic"] for finding in findings}
    assert all(finding["level"] in ("ok", "hint") for finding in findings)
    left_nothing(place)
