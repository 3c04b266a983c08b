"""`top` against a scripted controller, on a terminal and elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.cli.app import run
from headrace.cli.rates import KEPT, Rates, trend
from headrace.types import RunnersSnapshot
from tests.unit.cli.terminal import drawn
from tests.unit.sdk import fake as say
from tests.unit.sdk.fake import Fake, serving


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    with serving(tmp_path / "c.sock") as fake:
        monkeypatch.setenv("HEADRACE_HOST", fake.target)
        monkeypatch.delenv("COLUMNS", raising=False)
        yield fake


def test_in_a_pipe_it_is_one_look_without_escapes(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.runners = [say.runners(), say.runners(output_tokens=500, waiting=2)]
    assert run(["top", "--interval", "200ms"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    heading, summary, _, columns, *rows = out.splitlines()
    assert heading.startswith(f"headrace top  {fake.target}")
    assert summary.startswith("memory 2.1 GB of 4.3 GB ██████████░")
    assert summary.endswith("running 1  waiting 4")
    assert columns.split() == [
        *("MODEL", "RUNNER", "STATE", "RUNS", "WAITS", "TOKENS/S", "PROMPT/S", "CACHED", "MEMORY"),
        "UNLOADED",
    ]
    served, loading, waiting = (row.split() for row in rows)
    assert served[:5] == ["m:1", "a", "serving", "1", "2"]
    assert 0 < float(served[5]) <= 2500
    assert served[6:] == ["0.0", "40%", "1.1", "GB", "in", "5m"]
    assert loading[:7] == ["n:1", "b", "loading", "50%", "0", "0", "-"]
    assert waiting[:5] == ["o:1", "-", "waiting", "-", "2"]


def test_as_json_it_is_one_object_a_look(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.runners = [say.runners(), say.runners(10), say.runners(10, waiting=1)]
    assert run(["top", "--json", "--count", "2", "--interval", "100ms"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert 0 < first["tokens_per_second"] <= 100
    assert first["runners"][0]["tokens_per_second"] == first["tokens_per_second"]
    assert first["runners"][0]["report"]["output_tokens_total"] == 10
    assert first["runners"][1]["tokens_per_second"] is None
    assert (second["tokens_per_second"], second["waiting"]) == (0, {"o:1": 1})


@pytest.mark.parametrize("interval", ["0", "10ms", "forever"])
def test_it_does_not_look_without_a_pause(
    interval: str, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["top", f"--interval={interval}"]) == 2
    assert "--interval" in capsys.readouterr().err
    assert fake.requests == []


def test_where_nothing_is_loaded(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.runners[0].ClearField("runners")
    assert run(["top", "--interval", "100ms"]) == 0
    assert "no model is loaded" in capsys.readouterr().out


def test_on_a_terminal_it_goes_on_and_leaves_the_screen_as_it_was(fake: Fake) -> None:
    fake.runners = [say.runners(10 * number) for number in range(4)]
    arguments = ("top", "--interval", "100ms", "--count", "3")
    shown = drawn(arguments, COLUMNS="120", LINES="20")
    assert shown.index("\x1b[?1049h") < shown.index("TREND") < shown.index("\x1b[?1049l")
    assert "█" in shown


def test_rates_are_differences_in_time() -> None:
    from headrace import _convert

    def told(output: int) -> RunnersSnapshot:
        return _convert.runners_snapshot(say.runners(output))

    rates = Rates()
    assert rates.take(told(5), 10.0)["a"].output is None
    assert rates.take(told(25), 14.0)["a"].output == 5.0
    # A runner that is gone takes its past with it.
    rates.take(RunnersSnapshot((), {}, 0), 15.0)
    assert rates.history("a") == []
    silent = replace(told(0), runners=(replace(told(0).runners[0], report=None),))
    rates.take(silent, 15.2)
    rates.take(RunnersSnapshot((), {}, 0), 15.5)
    assert rates.history("a") == [], "nor one that has never told anything"
    assert rates.take(told(3), 16.0)["a"].output is None
    for number in range(100):
        rates.take(told(number), 17.0 + number)
    assert len(rates.history("a")) == len(rates.total) == KEPT


def test_a_trend_is_as_high_as_its_highest() -> None:
    assert trend([0.0, 1.0, 4.0, 8.0], unicode=True) == " ▂▅█"
    assert trend([0.0, 0.0], unicode=True) == trend([], unicode=True) == ""
    assert trend([1.0], unicode=False) == ""
