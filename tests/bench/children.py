"""Child processes of the bench: started, waited for, stopped and reaped, whatever happens.

A child is ready once it has printed a line with a given marker. What it serves is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager

START_SECONDS = 120.0
STOP_SECONDS = 20.0
_TAIL_LINES = 15
_LINE_BYTES = 8 << 20


class BenchError(Exception):
    """A contender could not be measured."""


def explain(error: BaseException) -> str:
    """What ended a measurement, for people."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "its streams took too long"
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    kind = "" if isinstance(error, BenchError) else f"{type(error).__name__}: "
    return f"{kind}{error}{notes}"


class Child:
    """A running process. Its stdin stays open: some children end with it."""

    def __init__(self, process: Process, marker: bytes) -> None:
        assert process.stdout
        assert process.stderr
        self._process = process
        self._marker = marker
        self._ready = asyncio.Event()
        self._answer: asyncio.Future[bytes] | None = None
        self._tail: deque[bytes] = deque(maxlen=_TAIL_LINES)
        self._listeners = [
            asyncio.create_task(self._listen(stream)) for stream in (process.stdout, process.stderr)
        ]

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> None:
        """Raises BenchError when the child ends, or says nothing within START_SECONDS."""
        await self._expect(self._ready.wait(), START_SECONDS, "its start")

    async def ask(self, line: bytes, limit: float) -> bytes:
        """Sends a line to its stdin and gives the JSON object, on one line, that it answers.

        Raises BenchError when none comes within `limit` seconds.
        """
        assert self._process.stdin
        self._answer = asyncio.get_running_loop().create_future()
        self._process.stdin.write(line + b"\n")
        await self._expect(self._answer, limit, "its answer")
        return self._answer.result()

    async def ended(self, limit: float) -> None:
        """Waits until it ends well. Raises BenchError when it does not within `limit` seconds."""
        try:
            async with asyncio.timeout(limit):
                code = await self._process.wait()
        except TimeoutError:
            raise self._failure(f"did not end within {limit:.0f} s") from None
        if code:
            raise self._failure(f"ended with {code}")

    async def stop(self) -> None:
        """Ends it, by force if need be, and reaps it."""
        assert self._process.stdin
        self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await self._process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            for listener in self._listeners:
                listener.cancel()
            await asyncio.gather(*self._listeners, return_exceptions=True)

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            if self._answer and not self._answer.done() and line.startswith(b"{"):
                self._answer.set_result(line)
                continue
            self._tail.append(line)
            if self._marker in line:
                self._ready.set()

    async def _expect(self, event: Awaitable[object], limit: float, what: str) -> None:
        waiting = asyncio.ensure_future(event)
        ending = asyncio.create_task(self._process.wait())
        try:
            await asyncio.wait(
                (waiting, ending), timeout=limit, return_when=asyncio.FIRST_COMPLETED
            )
            if ending.done() and not waiting.done():  # it may have said so with its last words
                await asyncio.wait(self._listeners, timeout=STOP_SECONDS)
            if not waiting.done():
                code = self._process.returncode
                how = f"{limit:.0f} s went by" if code is None else f"it ended with {code}"
                raise self._failure(f"was waited for, {what} did not come: {how}")
        finally:
            waiting.cancel()
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)

    def _failure(self, what: str) -> BenchError:
        error = BenchError(f"the process {what}")
        if self._tail:
            error.add_note(b"".join(self._tail).decode(errors="replace").rstrip())
        return error


@asynccontextmanager
async def running(
    command: Sequence[str | os.PathLike[str]],
    environment: Mapping[str, str],
    marker: bytes,
) -> AsyncIterator[Child]:
    """A child, from its start to its end. It is ready once a line it prints contains `marker`."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=dict(environment),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        limit=_LINE_BYTES,
        # Ctrl-C reaches the bench alone, which then stops its children.
        process_group=0,
    )
    child = Child(process, marker)
    try:
        yield child
    finally:
        await child.stop()
