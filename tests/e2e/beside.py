"""A stream that runs beside what a test does, and its pauses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from headrace import AsyncClient, AsyncCompletionStream
from headrace.errors import Cancelled
from headrace.types import Delta
from tests.e2e.harness import MODEL


@asynccontextmanager
async def undisturbed(client: AsyncClient) -> AsyncIterator[None]:
    """SmolLM2 decodes within this, and never pauses for as long as its own load took here.

    It has to be loaded by this: a busy machine takes longer for both.
    """
    began = time.monotonic()
    await client.load_model(MODEL)
    load = time.monotonic() - began
    async with client.stream_completion(
        MODEL, "1, 2, 3,", max_tokens=4000, ignore_eos=True
    ) as stream:
        async for event in stream:
            if isinstance(event, Delta):
                break
        reading = asyncio.create_task(_longest_pause(stream))
        try:
            yield
        finally:
            stream.cancel()
            pause = await reading
    assert pause < load, f"a stream paused for {pause:.2f} s; a load takes {load:.2f} s"


async def _longest_pause(stream: AsyncCompletionStream) -> float:
    """Between two events of a stream, up to its end."""
    longest, last = 0.0, time.monotonic()
    with suppress(Cancelled):
        async for _ in stream:
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        return longest
    return max(longest, time.monotonic() - last)
