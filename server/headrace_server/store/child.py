"""Runs a helper program to its end: lines of its output as they come, the tail of its errors.

The helper never outlives the call: a caller that is cancelled kills and reaps it. Its standard
input stays open for as long as this process lives, so a helper that reads it notices a death.
"""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_LINE_BYTES = 16 << 20
_TAIL_BYTES = 64 << 10


@dataclass(frozen=True)
class Ended:
    """How a helper ended: `returncode` is negative for a signal."""

    returncode: int
    errors: str
    """The last 64 KiB of its standard error."""


async def run_child(
    arguments: Sequence[str],
    on_line: Callable[[str], None],
    environment: Mapping[str, str],
    first_line: str = "",
) -> Ended:
    """Run `arguments` with `environment` added to this process's own.

    `first_line` goes to its standard input: unlike its arguments, nobody else can read that.
    """
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=os.environ | environment,
        limit=_LINE_BYTES,
        start_new_session=True,  # Ctrl-C reaches it through its owner alone.
    )
    assert process.stdout is not None
    assert process.stderr is not None
    if first_line:
        assert process.stdin is not None
        process.stdin.write(f"{first_line}\n".encode())
    errors = asyncio.create_task(_tail(process.stderr))
    try:
        async for line in process.stdout:
            on_line(line.decode("utf-8", errors="replace").rstrip())
        tail = await errors
        return Ended(await process.wait(), tail.decode("utf-8", errors="replace"))
    finally:
        errors.cancel()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _tail(stream: asyncio.StreamReader) -> bytes:
    tail = b""
    while chunk := await stream.read(1 << 16):
        tail = (tail + chunk)[-_TAIL_BYTES:]
    return tail
