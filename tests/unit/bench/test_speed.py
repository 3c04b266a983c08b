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
    rows = {(row["contender"], row["streams"]): row for row in report.figures(results)}
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

    page = io.StringIO()
    report.show(results, setting.facts(), Console(file=page, width=report.WIDTH))
    assert "no such file" in page.getvalue()
    document = json.loads(report.to_json(results, setting.facts()))
    assert document["rows"][1]["overall"]["median"] == pytest.approx(10.0)
