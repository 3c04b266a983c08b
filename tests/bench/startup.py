"""How long a start takes: `headrace serve` until it is ready, `headrace run` until its first text,
and a runner that was killed until another serves in its place.

Each start is a new process; what the system has cached of files stays cached.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

import psutil

from headrace import AsyncClient
from tests.bench.children import BenchError, running
from tests.bench.servers import controller
from tests.bench.setting import MODEL, Setting
from tests.bench.stats import Spread, spread

_PROMPT = "What is the capital of France? Explain briefly."
_RUN_SECONDS = 120.0
_LOOK = 0.5
"""Seconds between two looks at a spare runner."""
_IMPORTS = 0.5
"""Seconds of CPU that its imports take at least."""


async def measure(setting: Setting, times: int) -> dict[str, Spread]:
    """Seconds by what was measured. Raises BenchError."""
    headrace = Path(sys.executable).with_name("headrace")
    if not headrace.exists():
        raise BenchError(f"there is no {headrace}: install the package")
    measured = {
        "headrace serve: start to ready, s": [
            await _serve(headrace, setting) for _ in range(times)
        ],
        "headrace run: start to first text, s": [
            await _run(headrace, setting) for _ in range(times)
        ],
        **await _recoveries(setting, times),
    }
    return {name: found for name, values in measured.items() if (found := spread(values))}


async def _serve(headrace: Path, setting: Setting) -> float:
    address = f"unix:{setting.sockets}/serve.sock"
    command = (headrace, "serve", "--listen", address, "--home", setting.home)
    life = ("--ready-fd", "1", "--parent", "stdin")
    begin = time.perf_counter()
    async with running((*command, *life), os.environ, b'{"event": "listening"') as child:
        await child.ready()
        return time.perf_counter() - begin


async def _run(headrace: Path, setting: Setting) -> float:
    environment = {
        **os.environ,
        "HEADRACE_HOME": str(setting.home),
        # Nobody listens there, so that it starts a controller of its own.
        "HEADRACE_HOST": f"unix:{setting.sockets}/nobody.sock",
    }
    begin = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *(headrace, "run", MODEL, _PROMPT, "--max-tokens", "4"),
        env=environment,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=DEVNULL,
    )
    assert process.stdout
    try:
        async with asyncio.timeout(_RUN_SECONDS):
            first = await process.stdout.read(1)
            elapsed = time.perf_counter() - begin
            await process.stdout.read()
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code or not first:
        raise BenchError(f"headrace run ended with {code}")
    return elapsed


async def _recoveries(setting: Setting, times: int) -> dict[str, list[float]]:
    """Seconds from the SIGKILL of a runner to the first token of the next request."""
    measured: dict[str, list[float]] = {}
    for _ in range(times):
        for option in ("--spare", "--no-spare"):
            title = f"SIGKILL of a runner to serving again, {option}, s"
            measured.setdefault(title, []).append(await _recover(setting, option))
    return measured


async def _recover(setting: Setting, option: str) -> float:
    """A controller for each kill: a model that dies again and again is waited with."""
    async with (
        controller(setting, option) as (child, address),
        AsyncClient(address, timeout=_RUN_SECONDS) as client,
    ):
        await client.complete(MODEL, _PROMPT, max_tokens=1)
        (runner,) = (await client.get_model(MODEL)).runners
        if option == "--spare":
            await _spare(child.pid, but=runner.pid)
        begin = time.perf_counter()
        psutil.Process(runner.pid).kill()
        await client.complete(MODEL, _PROMPT, max_tokens=1)
        return time.perf_counter() - begin


async def _spare(controller_pid: int, but: int) -> None:
    """Return when a spare runner is there, and rests."""
    spent = -1.0
    for _ in range(round(_RUN_SECONDS / _LOOK)):
        children = psutil.Process(controller_pid).children()
        for process in (one for one in children if one.pid != but):
            before, spent = spent, sum(process.cpu_times()[:2])
            if process.cmdline()[-1] == "--spare" and spent > _IMPORTS and spent == before:
                return
        await asyncio.sleep(_LOOK)
    raise BenchError("the controller made no spare runner")
