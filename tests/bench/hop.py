"""What the controller's hop costs: many streams of a runner that computes nothing.

Three ways to it take turns: straight, through a bare relay, and through the controller.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice, repeat
from typing import Any

import grpc.aio
import psutil
from rich.console import Group

from headrace.v1.completion_pb2 import StreamCompletionRequest
from tests.bench.bare_relay import METHOD
from tests.bench.children import BenchError, Child, running
from tests.bench.report import Outcome, cell, grid
from tests.bench.servers import Place, controller
from tests.bench.setting import MODEL
from tests.bench.stats import percentile, ratio, spread

REQUESTS = 10_000
"""Of each way."""
TOKENS = 128
"""Of each stream, one in a message."""
AT_ONCE = 32
ROUND = 1000
"""Requests of one way in one round, AT_ONCE at a time."""
ALONE = 200
"""More of them in each round, one after the other."""
PREFILL = 0.01
"""Seconds from `started` to the first token of those. Any real runner takes as long."""

THROUGHPUT = 0.9
"""Least share of a bare relay's messages a second."""
LATENCY = 0.001
"""Seconds that the hop may add to the time to first token of a stream that is alone, at most."""
GROWTH = 1.05
"""How many times its memory after the first round the controller's may be at the end."""

_ENDS = 2
"""Messages of a stream beside its tokens: `started` and `completed`."""
_SECONDS = 60.0
"""In which a stream has to end."""
_DELTA = b"\x1a"
"""The first byte of a message with a token."""
_FAST = (sys.executable, "-m", "tests.bench.fast_runner", "--listen")


@dataclass(frozen=True)
class Figures:
    """What was measured on one way to the runner, by round."""

    title: str
    messages: list[float] = field(default_factory=list)
    """A second, with AT_ONCE streams."""
    cpu: list[float] = field(default_factory=list)
    """Seconds that the process before the client computes for each message of those."""
    requests: list[float] = field(default_factory=list)
    """Seconds that it computes for each request of one token, which are alone."""
    first_tokens: list[float] = field(default_factory=list)
    """Median time to first token in seconds, of streams that are alone, but for PREFILL."""
    resident: list[int] = field(default_factory=list)
    """Bytes of that process at the end of each round."""


@dataclass(frozen=True)
class _Way:
    """One way to the runner."""

    channel: grpc.aio.Channel
    process: psutil.Process
    """The one that the client talks to."""
    found: Figures

    async def warm_up(self) -> None:
        """One stream, upon which the controller loads the model."""
        call: Any = self.channel.unary_stream(METHOD)
        async for _ in call(_MANY, timeout=_SECONDS):
            pass

    async def measure(self) -> None:
        """One round. Raises BenchError where a stream is not whole."""
        computed = _computed(self.process)
        times = [await self._stream(_ALONE, 1) for _ in range(ALONE)]
        self.found.requests.append((_computed(self.process) - computed) / ALONE)
        self.found.first_tokens.append(percentile(times, 50) - PREFILL)
        supply = islice(repeat(None), ROUND)
        computed, began = _computed(self.process), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._work(supply))
        messages = ROUND * (TOKENS + _ENDS)
        self.found.messages.append(messages / (time.perf_counter() - began))
        self.found.cpu.append((_computed(self.process) - computed) / messages)
        self.found.resident.append(self.process.memory_info().rss)

    async def _work(self, supply: islice[None]) -> None:
        for _ in supply:
            await self._stream(_MANY, TOKENS)

    async def _stream(self, request: bytes, tokens: int) -> float:
        """Seconds to the first token."""
        began, first, count = time.perf_counter(), 0.0, 0
        call: Any = self.channel.unary_stream(METHOD)
        async for message in call(request, timeout=_SECONDS):
            count += 1
            if not first and message[:1] == _DELTA:
                first = time.perf_counter() - began
        if count < tokens + _ENDS:  # One who waits for a runner is told so in further messages.
            raise BenchError(
                f"{self.found.title}: a stream of {tokens} tokens had {count} messages"
            )
        return first


def _request(tokens: int, prefill: float) -> bytes:
    request = StreamCompletionRequest(model=MODEL, prompt=str(prefill), max_tokens=tokens)
    return request.SerializeToString()


_MANY = _request(TOKENS, 0.0)
_ALONE = _request(1, PREFILL)


async def measure(setting: Place, requests: int, note: Callable[[str], None]) -> list[Figures]:
    """Each way in turn, until each has had so many requests. Raises BenchError."""
    direct = f"unix:{setting.sockets}/fast.sock"
    relay = f"unix:{setting.sockets}/relay.sock"
    bare = (sys.executable, "-m", "tests.bench.bare_relay", relay, direct)
    start = partial(running, environment=os.environ, marker=b"ready")
    async with (
        start((*_FAST, direct)) as runner,
        start(bare) as relaying,
        controller(setting, program="tests.bench.fast_controller") as (serving, address),
    ):
        for child in (runner, relaying):
            await child.ready()
        async with (
            _way("runner alone", direct, runner) as alone,
            _way("bare relay", relay, relaying) as plain,
            _way("controller", address, serving) as ours,
        ):
            ways = [alone, plain, ours]
            for way in ways:
                await way.warm_up()
            rounds = -(-requests // ROUND)
            for number in range(1, rounds + 1):
                for way in ways if number % 2 else reversed(ways):
                    await way.measure()
                note(f"round {number} of {rounds}")
            return [way.found for way in ways]


@asynccontextmanager
async def _way(title: str, address: str, child: Child) -> AsyncIterator[_Way]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield _Way(channel, psutil.Process(child.pid), Figures(title))


def _computed(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def outcome(ways: Sequence[Figures]) -> Outcome:
    """Of the runner alone, the bare relay and the controller: a table, and a failure where the hop
    costs more than it may."""
    alone, plain, ours = ways
    table = grid(
        (
            "way",
            "messages/s",
            "CPU µs a message",
            "CPU µs a request",
            "TTFT p50 ms, alone",
            "resident MB",
        ),
        (
            (
                way.title,
                cell(spread(way.messages), 0),
                cell(spread(way.cpu), 0, scale=1e6),
                cell(spread(way.requests), 0, scale=1e6),
                cell(spread(way.first_tokens), 2, scale=1e3),
                f"{way.resident[0] / 1e6:.1f} → {way.resident[-1] / 1e6:.1f}",
            )
            for way in ways
        ),
    )
    share = ratio(ours.messages, plain.messages)
    added = spread(
        mine - direct for mine, direct in zip(ours.first_tokens, alone.first_tokens, strict=True)
    )
    assert share
    assert added
    growth = ours.resident[-1] / ours.resident[0]
    rows = (
        ("messages/s, controller / bare relay", cell(share, 3), f"≥ {THROUGHPUT}"),
        ("TTFT p50 ms, controller − runner alone", cell(added, 2, scale=1e3), f"< {LATENCY * 1e3}"),
        ("controller's memory, last round / first", f"{growth:.3f}", f"≤ {GROWTH}"),
    )
    failures = [
        f"{name}: {found}, aim {aim}"
        for (name, found, aim), holds in zip(
            rows,
            (share.median >= THROUGHPUT, added.median < LATENCY, growth <= GROWTH),
            strict=True,
        )
        if not holds
    ]
    figures = {
        "ways": [asdict(way) for way in ways],
        "share": asdict(share),
        "added": asdict(added),
        "growth": growth,
    }
    return Outcome(Group(table, grid(("", "measured", "aim"), rows)), figures, failures)
