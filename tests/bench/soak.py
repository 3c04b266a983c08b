"""Many requests in a row through a runner, many of them cancelled: does its memory stay?

Prompts are random tokens, so that any model will do. A third of the requests is cancelled: after a
random time, which is often before the first token, or after some outputs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

import grpc
from rich.console import Group

from headrace import AsyncClient, Delta
from headrace.rpc.options import channel_options
from headrace.v1.runner_pb2 import GetRunnerRequest, WatchRunnerRequest
from headrace.v1.runner_pb2_grpc import RunnerServiceStub
from tests.bench.children import BenchError
from tests.bench.report import Outcome, grid

if TYPE_CHECKING:
    from headrace.v1.runner_pb2_grpc import RunnerServiceAsyncStub

BOUND = 1.05
"""How many times the memory after the first requests the memory at the end may be."""
REQUESTS = 2000
SETTLED = 200
"""Requests after which memory counts as settled."""
AT_ONCE = 16
RUNNER_OPTIONS = ("--prefix-cache", str(128 << 20))
"""A prefix cache that is full by then: what it has yet to take is no leak."""

_PROMPT_TOKENS = (5, 150)
_OUTPUT_TOKENS = (1, 24)
_SHARING = 0.25
"""Share of the requests that begin with one of the shared prefixes."""
_SHARED_PREFIXES = 8
_SHARED_TOKENS = 60
_SECONDS = 300.0
"""In which any one call has to end."""


@dataclass(frozen=True)
class Order:
    """One request, and when its caller leaves. Never: it is read to its end."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    patience: float | None = None
    """Seconds after which it is cancelled."""
    outputs: int | None = None
    """Outputs after which it is cancelled; 0: with the first event of the stream."""


@dataclass(frozen=True)
class Memory:
    """Of a runner with nothing to do, in bytes."""

    resident: int
    active: int
    """What MLX has in use."""
    cache: int
    """What MLX keeps for reuse."""
    peak: int
    """The most that MLX has had in use."""
    prefixes: int
    """The prefix cache, part of what is active."""


@dataclass(frozen=True)
class Report:
    """What a soak found."""

    settled: Memory
    """After the first of them."""
    end: Memory
    requests: int
    cancelled: int
    seconds: float

    @property
    def resident(self) -> float:
        """Resident memory at the end, in those of the settled one."""
        return self.end.resident / self.settled.resident

    @property
    def active(self) -> float:
        """What MLX has in use at the end, in those of the settled one."""
        return self.end.active / self.settled.active


def orders(vocabulary: int, patience: float, seed: int = 0) -> Iterator[Order]:
    """Requests without end, always the same ones for a seed.

    Lengths are spread evenly in their logarithm: most are short, as long ones take the time.
    """
    random = Random(seed)
    shortest, longest = _PROMPT_TOKENS

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(random.choices(range(vocabulary), k=count))

    prefixes = [tokens(_SHARED_TOKENS) for _ in range(_SHARED_PREFIXES)]
    while True:
        prompt = tokens(round(shortest * (longest / shortest) ** random.random()))
        if random.random() < _SHARING:
            prompt = (random.choice(prefixes) + prompt)[:longest]
        order = Order(prompt, random.randint(*_OUTPUT_TOKENS), random.choice((0.0, 0.0, 0.8)))
        match random.randrange(6):
            case 0:
                yield replace(order, patience=random.uniform(0, patience))
            case 1:
                yield replace(order, outputs=random.randint(0, order.max_tokens // 2))
            case _:
                yield order


async def soak(
    address: str,
    model: str,
    requests: int,
    note: Callable[[str], None] = lambda _: None,
    *,
    settled_after: int = SETTLED,
    patience: float = 2.0,
) -> Report:
    """Sends `requests` to the runner at `address`, AT_ONCE at a time.

    Memory counts as settled once `settled_after` of them have ended. Requests that are cancelled
    by time are so within `patience` seconds. Raises HeadraceError, ExceptionGroup.
    """
    begin = time.perf_counter()
    async with (
        AsyncClient(address) as client,
        grpc.aio.insecure_channel(address, options=channel_options(address)) as channel,
    ):
        runner: RunnerServiceAsyncStub = RunnerServiceStub(channel)
        limits = (await runner.GetRunner(GetRunnerRequest(), timeout=_SECONDS)).runner.limits
        supply = orders(limits.vocab_size, patience)
        send = partial(_send, partial(_send_one, client, model))
        cancelled = await send(islice(supply, settled_after))
        settled = await _memory_when_idle(runner)
        note(f"after {settled_after}: {settled.resident / 1e6:.1f} MB resident")
        cancelled += await send(islice(supply, requests - settled_after))
        end = await _memory_when_idle(runner)
    return Report(settled, end, requests, cancelled, time.perf_counter() - begin)


def outcome(report: Report) -> Outcome:
    """A table in megabytes; a failure where memory has grown beyond the bound."""
    ratios = {"resident": report.resident, "active": report.active}
    ends = asdict(report.end)
    table = grid(
        ("MB", "settled", "at the end", "ratio"),
        (
            (name, f"{before / 1e6:.1f}", f"{ends[name] / 1e6:.1f}", _shown(ratios.get(name)))
            for name, before in asdict(report.settled).items()
        ),
    )
    summary = (
        f"{report.requests} requests, {report.cancelled} of them cancelled, "
        f"in {report.seconds:.0f} s"
    )
    grown = [
        f"{name} memory grew to {ratio:.3f} times what it was"
        for name, ratio in ratios.items()
        if ratio > BOUND
    ]
    figures = {**asdict(report), "ratios": ratios}
    return Outcome(Group(table, summary), figures, grown)


def _shown(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.3f}"


async def _send(one: Callable[[Order], Awaitable[bool]], supply: Iterator[Order]) -> int:
    """Sends all orders, AT_ONCE at a time; how many were cancelled."""

    async def work() -> int:
        return sum([await one(order) for order in supply])

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work()) for _ in range(AT_ONCE)]
    return sum(task.result() for task in tasks)


async def _send_one(client: AsyncClient, model: str, order: Order) -> bool:
    """Whether it was cancelled."""
    stream = client.stream_completion(
        model,
        token_ids=order.prompt,
        max_tokens=order.max_tokens,
        temperature=order.temperature,
        ignore_eos=True,
        timeout=_SECONDS,
    )
    outputs = 0
    try:
        async with stream, asyncio.timeout(order.patience):
            async for event in stream:
                outputs += isinstance(event, Delta)
                if outputs == order.outputs:
                    return True
    except TimeoutError:
        return True
    return False


async def _memory_when_idle(runner: RunnerServiceAsyncStub) -> Memory:
    call = runner.WatchRunner(WatchRunnerRequest(), timeout=_SECONDS)
    async for response in call:
        load, memory = response.runner.load, response.runner.memory
        # It has rested, too, and given back what it keeps for the next request.
        if load.running == load.waiting == memory.cache_bytes == 0:
            call.cancel()
            return Memory(
                resident=memory.resident_bytes,
                active=memory.active_bytes,
                cache=memory.cache_bytes,
                peak=memory.peak_bytes,
                prefixes=memory.prefix_cache_bytes,
            )
    raise BenchError("the runner stopped")
