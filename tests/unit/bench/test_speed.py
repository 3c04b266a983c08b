"""The rounds and their report, with contenders that answer on the spot."""

import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import MappingProxyType

import pytest
from rich.console import Console

from headrace.host.machine import describe
from tests.bench import report
from tests.bench.aims import Aim, reached
from tests.bench.children import BenchError
from tests.bench.contenders import Batch, Contender
from tests.bench.setting import Setting
from tests.bench.speed import Plan, Results, run
from tests.bench.stats import Arrival, Spread, Trace


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(
        home=tmp_path,
        stored=tmp_path,
        float32=tmp_path,
        quantized=tmp_path,
        sockets=tmp_path,
        machine=describe(),
        blas=None,
        tuned={},
        stock={},
    )


def steady(name: str, pace: float, **more: object) -> Contender:
    """A contender whose streams get a token every `pace` seconds, the first included."""

    async def batch(prompts: Sequence[str], tokens: int) -> list[Trace]:
        arrivals = tuple(Arrival(pace * (n + 1), 1) for n in range(tokens))
        return [Trace(0.0, arrivals, 3, f"after {prompt}") for prompt in prompts]

    @asynccontextmanager
    async def start(_: Setting) -> AsyncIterator[Batch]:
        yield batch

    return Contender(name, name.title(), start, **more)  # type: ignore[arg-type]


async def measured(setting: Setting, *contenders: Contender, rounds: int = 2) -> Results:
    plan = Plan(contenders, rounds=rounds, streams=(1, 2), tokens=8)
    return await run(setting, plan, lambda _: None)


def figure(results: Results, contender: str, streams: int, name: str) -> object:
    rows = {(row["contender"], row["streams"]): row for row in report.rows(results)}
    return rows[contender, streams][name]


def median(results: Results, contender: str, streams: int, name: str) -> float:
    found = figure(results, contender, streams, name)
    assert isinstance(found, Spread)
    return found.median


async def test_ratios_and_texts_against_the_bare_loop(setting: Setting) -> None:
    results = await measured(setting, steady("bare", 0.1), steady("tuned", 0.2))
    assert median(results, "tuned", 2, "overall") == pytest.approx(10.0)
    assert median(results, "tuned", 2, "overall_to_bare") == pytest.approx(0.5)
    assert median(results, "bare", 2, "decode_to_tuned") == pytest.approx(2.0)
    assert figure(results, "tuned", 2, "same_text") == 4
    assert figure(results, "bare", 2, "compared") == 0


async def test_with_fewer_tokens_only_decode_rates_are_compared(setting: Setting) -> None:
    short = steady("short", 0.2, max_tokens=MappingProxyType({2: 4}), rounds=1)
    results = await measured(setting, steady("bare", 0.1), short)
    assert figure(results, "short", 2, "tokens") == [8, None]
    assert figure(results, "short", 2, "overall_to_bare") is None
    assert median(results, "short", 2, "decode_to_bare") == pytest.approx(0.5)
    assert figure(results, "short", 1, "overall_to_bare") is not None


async def test_what_is_costly_is_left_out(setting: Setting) -> None:
    results = await measured(setting, steady("slow", 1.0, costly=frozenset({2})))
    assert list(results.rows) == [("slow", 1)]


async def test_a_failure_is_reported_and_the_others_go_on(setting: Setting) -> None:
    def start(_: Setting) -> AbstractAsyncContextManager[Batch]:
        error = BenchError("the process ended with 1")
        error.add_note("no such file")
        raise error

    results = await measured(
        setting, Contender("broken", "Broken", start), steady("bare", 0.1), rounds=1
    )
    assert results.failures == ["round 1/1 · Broken: the process ended with 1\nno such file"]
    assert figure(results, "bare", 1, "overall") is not None

    outcome = report.speed(results)
    page = io.StringIO()
    report.show(outcome, setting.facts(), Console(file=page, width=report.WIDTH))
    assert "no such file" in page.getvalue()
    document = json.loads(report.to_json(outcome, setting.facts()))
    assert document["figures"]["rows"][1]["overall"]["median"] == pytest.approx(10.0)
    assert document["failures"] == results.failures


async def test_aims_are_held_or_missed_by_the_median_of_the_rounds(setting: Setting) -> None:
    results = await measured(setting, steady("bare", 0.1), steady("path", 0.125))
    aims = (
        Aim("path", "bare", "overall", 1, least=0.8),
        Aim("path", "bare", "overall", 2, least=0.95),
        Aim("path", "bare", "ttft_p50", 1, most=1.3),
        Aim("path", "bare", "ttft_p50", 2, most=1.2),
        Aim("path", "tuned", "overall", 1, least=0.5),  # not measured
    )
    found = [
        (aim, value.median, aim.holds(value.median)) for aim, value in reached(results.rows, aims)
    ]
    assert [aim for aim, _, _ in found] == list(aims[:4])
    assert [value for _, value, _ in found] == pytest.approx([0.8, 0.8, 1.25, 1.25])
    assert [holds for _, _, holds in found] == [True, False, True, False]


async def test_no_aim_compares_different_numbers_of_tokens(setting: Setting) -> None:
    short = steady("stock", 0.2, max_tokens=MappingProxyType({2: 4}))
    results = await measured(setting, steady("path", 0.1), short)
    aims = [Aim("path", "stock", "overall", streams, least=1) for streams in (1, 2)]
    assert [aim.streams for aim, _ in reached(results.rows, aims)] == [1]


async def test_the_table_says_which_aims_hold(setting: Setting) -> None:
    results = await measured(setting, steady("bare", 0.1), steady("exact", 0.2))
    page = io.StringIO()
    report.show(report.speed(results), setting.facts(), Console(file=page, width=report.WIDTH))
    (line,) = [line for line in page.getvalue().splitlines() if "exact / bare" in line]
    assert "0.50" in line
    assert "≥ 0.95" in line
    assert "missed" in line
