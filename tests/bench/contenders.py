"""Who is measured. One runs at a time."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

from tests.bench import servers
from tests.bench.children import Child, running
from tests.bench.setting import Setting
from tests.bench.stats import Arrival, Trace
from tests.bench.streams import Stream

LEVEL_SECONDS = 300.0
"""In which all streams of one measurement must end."""

_LLAMA_CONTEXT = 512
"""Tokens of prompt and output that each of its slots has room for."""

Batch = Callable[[Sequence[str], int], Awaitable[list[Trace]]]
"""Sends prompts at once, for so many tokens each; gives their traces.

Raises BenchError, or an ExceptionGroup of what ended the streams, TimeoutError after LEVEL_SECONDS.
"""


@dataclass(frozen=True)
class Contender:
    """Something to measure."""

    name: str
    title: str
    start: Callable[[Setting], AbstractAsyncContextManager[Batch]]
    rounds: int | None = None
    """In how many rounds it takes part at most."""
    max_tokens: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """By the number of streams: tokens of each, at most."""
    costly: frozenset[int] = frozenset()
    """Numbers of streams that take it minutes: measured only when asked for."""

    def tokens(self, streams: int, wanted: int) -> int:
        """Output tokens of each of `streams` streams."""
        return min(wanted, self.max_tokens.get(streams, wanted))


@asynccontextmanager
async def _bare(setting: Setting) -> AsyncIterator[Batch]:
    command = (sys.executable, Path(__file__).with_name("bare.py"), setting.float32)
    async with running(command, setting.tuned, b"ready") as child:
        await child.ready()
        yield partial(_bare_batch, child)


async def _bare_batch(child: Child, prompts: Sequence[str], tokens: int) -> list[Trace]:
    begin = time.perf_counter()
    request = json.dumps({"prompts": prompts, "tokens": tokens}).encode()
    answer = json.loads(await child.ask(request, LEVEL_SECONDS))
    arrivals = tuple(Arrival(begin + moment, 1) for moment in answer["times"])
    return [
        Trace(begin, arrivals, length, text)
        for length, text in zip(answer["prompt_tokens"], answer["texts"], strict=True)
    ]


@asynccontextmanager
async def _served(server: servers.Server, setting: Setting) -> AsyncIterator[Batch]:
    async with server(setting) as stream:
        yield partial(_all_at_once, stream)


@asynccontextmanager
async def _llama(setting: Setting) -> AsyncIterator[Batch]:
    async def batch(prompts: Sequence[str], tokens: int) -> list[Trace]:
        # Its slots are set at its start: one for each stream suits it best.
        async with servers.llama(setting, len(prompts), _LLAMA_CONTEXT) as stream:
            return await _all_at_once(stream, prompts, tokens)

    yield batch


async def _all_at_once(stream: Stream, prompts: Sequence[str], tokens: int) -> list[Trace]:
    async with asyncio.timeout(LEVEL_SECONDS), asyncio.TaskGroup() as group:
        tasks = [group.create_task(stream(prompt, tokens)) for prompt in prompts]
    return [task.result() for task in tasks]


CONTENDERS = (
    Contender("bare", "bare MLX loop", _bare),
    Contender("runner", "runner alone", partial(_served, servers.runner)),
    Contender("path", servers.OURS, partial(_served, servers.path)),
    Contender("exact", servers.EXACT, partial(_served, servers.exact)),
    Contender("tuned", "mlx_lm.server, tuned", partial(_served, servers.tuned)),
    Contender(
        "stock",
        "mlx_lm.server, stock",
        partial(_served, servers.stock),
        rounds=1,
        max_tokens=MappingProxyType({16: 8, 32: 8}),
        costly=frozenset({16, 32}),
    ),
    Contender("llama", servers.LLAMA, _llama),
)
