"""Who is measured, and how each is started. One runs at a time.

To add a peer, write its start as a function like the others and put it into CONTENDERS; llama.cpp's
server speaks the HTTP of `_mlx_lm`, for one.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from headrace import AsyncClient
from tests.bench.children import Child, running
from tests.bench.setting import MODEL, Setting
from tests.bench.stats import Arrival, Trace
from tests.bench.streams import grpc_stream, sse_stream

LEVEL_SECONDS = 300.0
"""In which all streams of one measurement must end."""

_STDOUT = "1"
"""Where children report that they are ready; they log elsewhere."""

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
async def _runner(setting: Setting) -> AsyncIterator[Batch]:
    address = f"unix:{setting.sockets}/runner.sock"
    command = (sys.executable, "-m", "headrace_runner", "--model", setting.stored, "--name", MODEL)
    options = ("--listen", address, "--dtype", "float32", "--max-concurrency", "32")
    life = ("--report-fd", _STDOUT, "--parent", "stdin", "--grace", "1")
    marker = b'{"event": "ready"}'
    async with running((*command, *options, *life), setting.tuned, marker) as child:
        await child.ready()
        async with AsyncClient(address) as client:
            yield partial(_all_at_once, partial(grpc_stream, client, MODEL))


@asynccontextmanager
async def controller(setting: Setting) -> AsyncIterator[tuple[Child, str]]:
    """A controller as users start it, ready, and its address."""
    address = f"unix:{setting.sockets}/controller.sock"
    command = (sys.executable, "-m", "headrace_server", "--listen", address, "--grace", "1s")
    life = ("--home", setting.home, "--ready-fd", _STDOUT, "--parent", "stdin")
    async with running((*command, *life), os.environ, b'{"event": "listening"') as child:
        await child.ready()
        yield child, address


@asynccontextmanager
async def _path(setting: Setting) -> AsyncIterator[Batch]:
    async with controller(setting) as (_, address), AsyncClient(address) as client:
        yield partial(_all_at_once, partial(grpc_stream, client, MODEL))


@asynccontextmanager
async def _mlx_lm(
    model: Callable[[Setting], Path],
    environment: Callable[[Setting], dict[str, str]],
    setting: Setting,
) -> AsyncIterator[Batch]:
    port = _free_port()
    command = (sys.executable, "-m", "mlx_lm", "server", "--model", model(setting))
    listen = ("--port", str(port))
    async with running((*command, *listen), environment(setting), b"Starting httpd") as child:
        await child.ready()
        yield partial(_all_at_once, partial(sse_stream, port))


async def _all_at_once(
    stream: Callable[[str, int], Coroutine[Any, Any, Trace]], prompts: Sequence[str], tokens: int
) -> list[Trace]:
    async with asyncio.timeout(LEVEL_SECONDS), asyncio.TaskGroup() as group:
        tasks = [group.create_task(stream(prompt, tokens)) for prompt in prompts]
    return [task.result() for task in tasks]


def _free_port() -> int:
    # mlx_lm.server does not say which port it took, so that it cannot be left to choose one.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


CONTENDERS = (
    Contender("bare", "bare MLX loop", _bare),
    Contender("runner", "runner alone", _runner),
    Contender("path", "whole path", _path),
    Contender(
        "tuned",
        "mlx_lm.server, tuned",
        partial(_mlx_lm, lambda setting: setting.float32, lambda setting: setting.tuned),
    ),
    Contender(
        "stock",
        "mlx_lm.server, stock",
        partial(_mlx_lm, lambda setting: setting.quantized, lambda setting: setting.stock),
        rounds=1,
        max_tokens=MappingProxyType({8: 32, 32: 8}),
        costly=frozenset({32}),
    ),
)
