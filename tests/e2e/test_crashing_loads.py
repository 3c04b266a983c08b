"""A model whose runners never come up: bounded tries, a clear error, and others undisturbed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from headrace import AsyncClient
from headrace.errors import CircuitOpen, LoadFailed
from headrace_server.store import Store
from tests.e2e.beside import undisturbed
from tests.e2e.conftest import TINY
from tests.e2e.harness import PATIENCE, Controller, StartController, python_path
from tests.unit.convert.tiny import write_gguf

CRASHING = "crashing:q4"
BOMB = """
import os, sys
words = sys.orig_argv
if "headrace_runner" in words and words[words.index("--name") + 1] == "crashing:q4":
    os.write(2, b"x" * 10_000_000 + b"libc++abi: terminating")
    os.abort()
"""
"""Read by every Python process of a controller: one model's runners never come up."""


@pytest.fixture
def minefield(home: Path, tmp_path: Path, start: StartController) -> Controller:
    """A controller whose store has a model that crashes at every load, after a 10 MB line."""
    write_gguf(tmp_path / "other.gguf", tied=False)
    asyncio.run(Store(home).import_model(tmp_path / "other.gguf", CRASHING))
    path = python_path(tmp_path / "python", BOMB)
    return start(home=home, extra={"PYTHONPATH": path})


async def test_c8_c4_a_model_that_crashes_at_every_load(minefield: Controller) -> None:
    async with AsyncClient(minefield.target, timeout=PATIENCE) as client:
        load = time.monotonic()
        await client.load_model(TINY)
        load = time.monotonic() - load
        async with undisturbed(client):
            began = time.monotonic()
            crashing = asyncio.ensure_future(client.complete(CRASHING, "x", max_tokens=1))
            # Another model takes requests all the while.
            served = 0
            while not crashing.done():
                await client.complete(TINY, "x", max_tokens=4)
                served += 1
            assert served > 3
            with pytest.raises(LoadFailed) as caught:
                await crashing
            assert caught.value.metadata == {"cause": "NATIVE_ABORT"}
            # Each try came later than the one before.
            assert 2 < time.monotonic() - began < PATIENCE

        starts = await minefield.logged("runner ended", 2, cause="NATIVE_ABORT")
        assert len(starts) <= 5
        log = minefield.log()
        # What it wrote is there, in pieces. The log never waits for a slow reader: what that one
        # misses of ten megabytes is counted.
        (runner, *_) = (line["runner_id"] for line in starts)
        told = [line["message"] for line in log if line.get("runner_id") == runner]
        written = sum(len(text) for text in told)
        missed = any("log records dropped" in line["message"] for line in log)
        assert written > 10_000_000 or (missed and written > 500_000)
        assert missed or any("libc++abi: terminating" in text for text in told)

        began = time.monotonic()
        with pytest.raises(CircuitOpen) as refused:
            await client.complete(CRASHING, "x", max_tokens=1)
        assert time.monotonic() - began < load
        assert refused.value.retry_after
        assert refused.value.metadata == {"cause": "NATIVE_ABORT"}
        assert (await client.complete(TINY, "x", max_tokens=1)).started.runner == "r1"
