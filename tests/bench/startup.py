"""How long a start takes: `headrace serve` until it is ready, `headrace run` until its first text.

Each start is a new process; what the system has cached of files stays cached.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

from tests.bench.children import BenchError, running
from tests.bench.setting import MODEL, Setting
from tests.bench.stats import Spread, spread

_PROMPT = "What is the capital of France? Explain briefly."
_RUN_SECONDS = 120.0


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
