"""Child processes of the bench: started, waited for, stopped and reaped, whatever happens.

A child is ready once it has printed a line with a given marker. What it serves is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

START_SECONDS = 120.0
STOP_SECONDS = 20.0
_TAIL_LINES = 15
_LINE_BYTES = 8 << 20


class BenchError(Exception):
    """A contender could not be measured."""


class Child:
    """A process that is ready."""

    def __init__(self, process: Process, marker: bytes) -> None:
        self._process = process
        self._marker = marker
        self._ready = asyncio.Event()
        self._answer: asyncio.Future[bytes] | None = None
        self._tail: deque[bytes] = deque(maxlen=_TAIL_LINES)
        assert process.stdout
        assert process.stderr
        self._tasks = [
            asyncio.create_task(self._listen(stream)) for stream in (process.stdout, process.stderr)
        ]

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait_ready(self) -> None:
        """Raises BenchError when the child ends, or says nothing within START_SECONDS."""
        await self._await(self._ready.wait(), START_SECONDS, "did not get ready")

    async def ask(self, line: bytes, limit: float) -> bytes:
        """Sends a line to its stdin and gives the JSON object, on a line, that it answers.

        Raises BenchError when none comes within `limit` seconds.
        """
        assert self._process.stdin
        self._answer = asyncio.get_running_loop().create_future()
        self._process.stdin.write(line + b"\n")
        await self._await(self._answer, limit, "gave no answer")
        return self._answer.result()

    async def stop(self) -> None:
        """Ends and reaps it."""
        assert self._process.stdin
        self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            await asyncio.gather(*self._tasks)

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            if self._answer and not self._answer.done() and line.startswith(b"{"):
                self._answer.set_result(line)
                continue
            self._tail.append(line)
            if self._marker in line:
                self._ready.set()

    async def _await(self, event: asyncio.Future[bytes] | Coroutine, limit: float, what: str):
        ...
