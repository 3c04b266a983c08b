"""What telemetry costs: the same streams with it off, kept here, and exported, round by round.

All controllers are up at the same time and idle but for the one whose turn it is, so that each
round compares what ran within a minute. None has a prefix cache: every round computes the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from headrace import AsyncClient
from headrace.telemetry import names, propagation
from headrace_runner.engine.tally import Tally
from headrace_server import measures
from tests.bench.children import BenchError, Child, running
from tests.bench.contenders import LEVEL_SECONDS
from tests.bench.prompts import prompts
from tests.bench.report import Outcome, cell, grid
from tests.bench.setting import MODEL, Setting
from tests.bench.stats import Spread, measure, ratio, spread
from tests.bench.streams import grpc_stream

ON_BOUND, OFF_BOUND = 0.98, 0.002
"""The least share of the throughput without telemetry that is left with it; and the most of a core
that it takes where nobody collects."""
_OPTIONS = (
    *("--prefix-cache", "0", "--no-spare", "--grace", "1s"),
    *("--preload", MODEL, "--keep-alive", "forever"),
)
_STDOUT = "1"
_SPANS = 8
"""Of one stream, in controller and runner together."""
_TIMES = 2000
_OFF, _STORE, _OTLP = "off", "local store", "OTLP"


@dataclass(frozen=True)
class Round:
    """What one controller did in one round."""

    rate: float
    """Output tokens a second, of all streams."""
    cpu: float
    """CPU seconds of controller and runner for 1,000 output tokens."""


@dataclass(frozen=True)
class Row:
    """One way to have telemetry, over all rounds, and beside none in the same round."""

    title: str
    rate: Spread | None
    cpu: Spread | None
    rate_to_off: Spread | None
    cpu_to_off: Spread | None


@dataclass(frozen=True)
class _Contender:
    title: str
    client: AsyncClient
    process: psutil.Process

    async def run(self, texts: Sequence[str], tokens: int) -> Round:
        before = self._cpu()
        async with asyncio.timeout(LEVEL_SECONDS), asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(grpc_stream(self.client, MODEL, text, tokens)) for text in texts
            ]
        sample = measure([task.result() for task in tasks])
        return Round(sample.overall, (self._cpu() - before) / sample.tokens * 1000)

    def _cpu(self) -> float:
        times = [p.cpu_times() for p in (self.process, *self.process.children(recursive=True))]
        return sum(each.user + each.system for each in times)


async def run(
    setting: Setting, streams: int, tokens: int, rounds: int, note: Callable[[str], None]
) -> Outcome:
    """The figures. Raises BenchError."""
    texts = prompts(streams)
    found: dict[str, list[Round]] = {}
    async with AsyncExitStack() as stack:
        sink = await stack.enter_async_context(_sink())
        contenders = [
            await stack.enter_async_context(_contender(setting, title, environment))
            for title, environment in _ways(sink).items()
        ]
        for each in contenders:
            await each.run(texts[:1], 4)
        for number in range(rounds):
            # In another order each time: a machine that gets slower favours nobody.
            turn = number % len(contenders)
            for each in (*contenders[turn:], *contenders[:turn]):
                note(f"round {number + 1}: {each.title}")
                found.setdefault(each.title, []).append(await each.run(texts, tokens))
    return outcome(found, idle_share(streams, tokens, found[_OFF]))


def _ways(sink: int) -> Mapping[str, Mapping[str, str]]:
    off = {"HEADRACE_TELEMETRY_STORE": "off"}
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink}", "NO_PROXY": "127.0.0.1"}
    return {_OFF: off, _STORE: {}, _OTLP: {**off, **endpoint}}


@asynccontextmanager
async def _sink() -> AsyncIterator[int]:
    """A receiver's port."""
    command = (sys.executable, Path(__file__).with_name("sink.py"))
    async with running(command, os.environ, b'{"port"') as child:
        await child.ready()
        yield int(json.loads(await child.ask(b"port", 10.0))["port"])


@asynccontextmanager
async def _contender(
    setting: Setting, title: str, environment: Mapping[str, str]
) -> AsyncIterator[_Contender]:
    address = f"unix:{setting.sockets}/{title.replace(' ', '-')}.sock"
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "HEADRACE_TEL"))}
    command = (sys.executable, "-m", "headrace_server", "--listen", address, *_OPTIONS)
    life = ("--home", setting.home, "--ready-fd", _STDOUT, "--parent", "stdin")
    async with running(
        (*command, *life), {**plain, **environment}, b'{"event": "listening"'
    ) as child:
        await child.ready()
        async with AsyncClient(address) as client:
            yield _Contender(title, client, _process(child))


def _process(child: Child) -> psutil.Process:
    try:
        return psutil.Process(child.pid)
    except psutil.Error as error:
        raise BenchError(f"a controller cannot be watched: {error}") from None


def idle_share(streams: int, tokens: int, rounds: Sequence[Round]) -> float:
    """How much of one core all calls to telemetry take where nobody collects anything.

    Timed by themselves: beside the streams so little could not be seen.
    """
    tracer = TracerProvider(sampler=ALWAYS_OFF).get_tracer("bench")
    tally = Tally(names.ENGINE_STEP_DURATION)

    def stream() -> None:
        for _ in range(_SPANS):
            tracer.start_span("name", attributes={names.GEN_AI_REQUEST_MODEL: MODEL}).end()
        propagation.headers()
        measures.granted(MODEL, 0.1, Context())
        measures.ended(
            MODEL,
            {names.GEN_AI_REQUEST_MODEL: MODEL},
            error="",
            seconds=1.0,
            output=measures.Output(0.5, 0.1, 1, 1),
        )

    def step() -> None:
        tally.add(0.1)
        tally.add(32)

    seconds = streams * _seconds(stream) + tokens * _seconds(step)
    fastest = max(each.rate for each in rounds)
    return seconds * fastest / (streams * tokens)


def _seconds(call: Callable[[], None]) -> float:
    """Of one call: the least of several series, which others have disturbed least."""
    series = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(_TIMES):
            call()
        series.append((time.perf_counter() - began) / _TIMES)
    return min(series)


def rows(found: Mapping[str, Sequence[Round]]) -> list[Row]:
    """A row for each way, the first of which is without telemetry."""
    base = next(iter(found.values()))
    return [
        Row(
            title,
            spread(each.rate for each in own),
            spread(each.cpu for each in own),
            ratio([each.rate for each in own], [each.rate for each in base]),
            ratio([each.cpu for each in own], [each.cpu for each in base]),
        )
        for title, own in found.items()
    ]


def outcome(found: Mapping[str, Sequence[Round]], idle: float) -> Outcome:
    """A table, and what costs more than it may."""
    table = rows(found)
    failures = [
        f"{row.title}: {row.rate_to_off.median:.3f} of the throughput is left, not {ON_BOUND}"
        for row in table
        if row.rate_to_off is not None and row.rate_to_off.median < ON_BOUND
    ]
    if idle > OFF_BOUND:
        failures.append(f"{idle:.2%} of a core goes to telemetry that is off")
    columns = ("telemetry", "tokens/s", "× off", "CPU s\nfor 1,000 tokens", "× off")
    lines = [
        (
            row.title,
            cell(row.rate, 1),
            cell(row.rate_to_off, 3),
            cell(row.cpu, 2),
            cell(row.cpu_to_off, 3),
        )
        for row in table
    ]
    lines.append(("calls of it while off", f"{idle:.3%} of a core", "", "", ""))
    return Outcome(
        grid(columns, lines), {"rows": [asdict(row) for row in table], "idle": idle}, failures
    )
