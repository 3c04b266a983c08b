"""Runners that die, hang, or never come up: what their clients see, and what comes after."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from headrace import AsyncClient
from headrace.errors import CircuitOpen, LoadFailed, RunnerCrashed, from_rpc_error
from headrace.types import Delta, Progress, Started
from headrace.v1.completion_pb2 import StreamCompletionRequest
from headrace.v1.completion_pb2_grpc import CompletionServiceStub
from headrace_server.store import Store
from tests.e2e.conftest import TINY
from tests.e2e.harness import MODEL, PATIENCE, Controller, StartController, aio_channel
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


async def test_killed_mid_stream_and_the_next_request_works(start: StartController) -> None:
    controller = start("--preload", MODEL)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        stream = client.stream_completion(MODEL, "1, 2, 3,", max_tokens=400, ignore_eos=True)
        got = 0

        async def read() -> None:
            nonlocal got
            async for event in stream:
                if isinstance(event, Delta):
                    got = event.output_tokens
                    if got == 3:
                        controller.runner().kill()

        with pytest.raises(RunnerCrashed) as caught:
            await read()
        error = caught.value
        assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "RUNNER_CRASHED")
        assert error.metadata == {"cause": "SIGNAL", "tokens_sent": str(got)}

        whole = await client.complete(MODEL, "1, 2, 3,", temperature=0, max_tokens=3)
        assert whole.started.runner == "r2"
        assert whole.text.startswith(" 4")
    await killed_with_several_choices(controller)


async def killed_with_several_choices(controller: Controller) -> None:
    """The tokens of all choices count as sent."""
    request = StreamCompletionRequest(model=MODEL, prompt="1, 2, 3,", max_tokens=400, n=3)
    request.stop.ignore_eos = True
    got = {0: 0, 1: 0, 2: 0}
    killed = False

    async def read(channel: grpc.aio.Channel) -> None:
        nonlocal killed
        async for response in CompletionServiceStub(channel).StreamCompletion(request):
            if response.HasField("delta"):
                got[response.delta.choice] = response.delta.output_tokens
                if not killed and all(got.values()) and sum(got.values()) >= 9:
                    controller.runner().kill()
                    killed = True

    async with asyncio.timeout(PATIENCE), aio_channel(controller.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read(channel)
    error = from_rpc_error(caught.value)
    assert isinstance(error, RunnerCrashed)
    assert error.metadata == {"cause": "SIGNAL", "tokens_sent": str(sum(got.values()))}


async def test_c2_killed_while_it_loads(start: StartController) -> None:
    controller = start()
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        stream = client.stream_completion(TINY, "x", max_tokens=3)
        async for event in stream:
            if isinstance(event, Progress) and event.load_fraction is not None:
                controller.runner().kill()
                break
        whole = await stream.collect()
        assert whole.started.runner == "r2"
        assert whole.usage.output_tokens == 3


async def test_c2_killed_while_it_prefills(start: StartController) -> None:
    controller = start("--preload", MODEL)
    prompt = [100 + i % 50 for i in range(300)]
    async with AsyncClient(controller.target, timeout=100) as client:
        stream = client.stream_completion(MODEL, token_ids=prompt, max_tokens=2)
        kinds = []
        async for event in stream:
            kinds.append(type(event))
            if isinstance(event, Progress) and event.prompt_tokens_done:
                controller.runner().kill()
                break
        whole = await stream.collect()
        assert Started in kinds  # so that a second one would have broken the stream
        assert whole.usage.output_tokens == 2
        assert whole.completed.resumed == 1
        # The seed that was told is the one that drew.
        again = await client.complete(
            MODEL, token_ids=prompt, seed=whole.started.seed, max_tokens=2
        )
        assert again.token_ids == whole.token_ids
        assert again.started.runner == "r2"


async def test_c3_a_stopped_runner(start: StartController) -> None:
    stall_timeout = 3.0
    controller = start("--preload", MODEL, "--stall-timeout", f"{stall_timeout}s")
    async with (
        AsyncClient(controller.target, timeout=PATIENCE) as client,
        aio_channel(controller.target) as channel,
    ):
        stream = client.stream_completion(MODEL, "1, 2, 3,", max_tokens=400, ignore_eos=True)
        async for event in stream:
            if isinstance(event, Delta):
                break
        runner = controller.runner()
        health = HealthStub(channel).Watch(HealthCheckRequest(service=f"model/{MODEL}"))
        assert (await health.read()).status == HealthCheckResponse.SERVING
        runner.suspend()
        stopped = time.monotonic()
        changed = await asyncio.wait_for(health.read(), 20)
        assert changed.status == HealthCheckResponse.NOT_SERVING
        assert time.monotonic() - stopped < stall_timeout + 1

        with pytest.raises(RunnerCrashed) as caught:
            await stream.collect()
        assert time.monotonic() - stopped < 2 * stall_timeout + 2
        assert caught.value.code is grpc.StatusCode.ABORTED
        assert caught.value.metadata["cause"] == "STALLED"
        health.cancel()
        assert (await client.complete(TINY, "x", max_tokens=1)).usage.output_tokens == 1


async def test_c3_a_runner_that_goes_on_in_time_loses_nothing(start: StartController) -> None:
    controller = start("--preload", MODEL)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        stream = client.stream_completion(MODEL, "1, 2, 3,", temperature=0, max_tokens=6)
        async for event in stream:
            if isinstance(event, Delta):
                break
        runner = controller.runner()
        runner.suspend()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(runner.wait, 1.0), 0.5)
        runner.resume()
        whole = await stream.collect()
        assert whole.usage.output_tokens == 6
        assert whole.started.runner == "r1"


@pytest.fixture
def minefield(home: Path, tmp_path: Path, start: StartController) -> Controller:
    """A controller whose store has a model that crashes at every load, after a 10 MB line."""
    write_gguf(tmp_path / "other.gguf", tied=False)
    asyncio.run(Store(home).import_model(tmp_path / "other.gguf", CRASHING))
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(BOMB)
    path = os.pathsep.join(
        entry for entry in (str(tmp_path / "python"), os.environ.get("PYTHONPATH")) if entry
    )
    return start(home=home, extra={"PYTHONPATH": path})


async def test_c8_c4_a_model_that_crashes_at_every_load(minefield: Controller) -> None:
    async with AsyncClient(minefield.target, timeout=PATIENCE) as client:
        await client.load_model(TINY)
        began = time.monotonic()
        crashing = asyncio.ensure_future(client.complete(CRASHING, "x", max_tokens=1))
        # The other model is served all the while.
        served = 0
        while not crashing.done():
            await client.complete(TINY, "x", max_tokens=4)
            served += 1
        assert served > 3
        with pytest.raises(LoadFailed) as caught:
            await crashing
        assert caught.value.metadata == {"cause": "NATIVE_ABORT"}
        # Each try came later than the one before.
        assert 2 < time.monotonic() - began < 30

        log = minefield.log()
        starts = [line for line in log if line.get("cause") == "NATIVE_ABORT"]
        assert 2 <= len(starts) <= 5
        # What it wrote is there, in pieces. The log never waits for a slow reader: what that one
        # misses of ten megabytes is counted.
        (runner, *_) = (line["runner_id"] for line in starts)
        told = [line["message"] for line in log if line.get("runner_id") == runner]
        written = sum(len(text) for text in told)
        missed = any("log records dropped" in line["message"] for line in log)
        assert written > 10_000_000 or (missed and written > 500_000)
        assert any("libc++abi: terminating" in text for text in told)

        began = time.monotonic()
        with pytest.raises(CircuitOpen) as refused:
            await client.complete(CRASHING, "x", max_tokens=1)
        assert time.monotonic() - began < 1
        assert refused.value.retry_after
        assert refused.value.metadata == {"cause": "NATIVE_ABORT"}
        assert (await client.complete(TINY, "x", max_tokens=1)).started.runner == "r1"
