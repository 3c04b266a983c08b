"""Health and models' states, while the machine is busy too."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from datetime import datetime

import grpc
import pytest
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
)
from grpc_health.v1.health_pb2_grpc import HealthStub

from headrace import AsyncClient
from headrace.types import Progress, RunnerState
from tests.e2e.conftest import TINY
from tests.e2e.harness import (
    MODEL,
    PATIENCE,
    Controller,
    StartController,
    aio_channel,
    gone,
    runner_address,
)
from tests.integration.runner.api import connected

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING


async def test_c7_health_answers_while_the_model_reads_long_prompts(
    controller: Controller,
) -> None:
    latencies: dict[str, list[float]] = {"controller": [], "runner": []}
    async with AsyncClient(controller.target, timeout=2 * PATIENCE) as client:
        await client.load_model(MODEL)
        address = runner_address(controller.runner())
        targets = {"controller": controller.target, "runner": address}

        async def read() -> None:
            """One prompt after the other, so that there is one to read however fast that goes."""
            for token in itertools.count(100):
                await client.complete(MODEL, token_ids=[token] * 4000, max_tokens=1)

        async def probe(name: str) -> None:
            async with aio_channel(targets[name]) as channel:
                stub = HealthStub(channel)
                await stub.Check(HealthCheckRequest())  # connects
                end = time.perf_counter() + 10.0
                while (began := time.perf_counter()) < end:
                    answer = await stub.Check(HealthCheckRequest())
                    latencies[name].append(time.perf_counter() - began)
                    assert answer.status == SERVING
                    await asyncio.sleep(0.02)

        async with connected(address) as runner:
            reading = asyncio.create_task(read())
            await runner.watch_until(lambda told: told.load.running == 1)
            await asyncio.gather(probe("controller"), probe("runner"))
            assert not reading.done()
            reading.cancel()
            await asyncio.wait([reading])
            await runner.idle()
    for name, seconds in latencies.items():
        assert len(seconds) > 20, name
        assert statistics.median(seconds) < 0.1, (name, seconds)
        # A few may meet a machine that has its cores for others; a piece of a prompt takes longer.
        assert sorted(seconds)[len(seconds) * 19 // 20] < 0.5, (name, seconds)


async def test_the_services_and_the_models_have_a_health(channel: grpc.aio.Channel) -> None:
    stub = HealthStub(channel)
    listed = (await stub.List(HealthListRequest())).statuses
    services = {
        "": SERVING,
        "headrace.v1.CompletionService": SERVING,
        "headrace.v1.TokenizeService": SERVING,
        "headrace.v1.ModelService": SERVING,
        "headrace.v1.ImageService": SERVING,
        "headrace.v1.EmbeddingService": SERVING,
        "headrace.v1.ScoreService": SERVING,
    }
    assert listed.keys() == services.keys() | {f"model/{MODEL}", f"model/{TINY}"}
    for service, status in services.items():
        assert listed[service].status == status
        assert (await stub.Check(HealthCheckRequest(service=service))).status == status
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(HealthCheckRequest(service="model/unknown"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_model_serves_while_it_is_loaded(start: StartController) -> None:
    controller = start()
    async with (
        asyncio.timeout(PATIENCE),
        AsyncClient(controller.target) as client,
        aio_channel(controller.target) as channel,
    ):
        stub = HealthStub(channel)
        model = HealthCheckRequest(service=f"model/{TINY}")
        watch = stub.Watch(model)
        copy = stub.Watch(HealthCheckRequest(service="model/copy:latest"))
        assert (await watch.read()).status == NOT_SERVING
        assert (await copy.read()).status == HealthCheckResponse.SERVICE_UNKNOWN

        # What `ps` shows on the way up.
        order: list[RunnerState] = []
        async with client.watch_models() as models:
            async with client.stream_completion(TINY, "x", max_tokens=1) as stream:
                told = [event async for event in stream if isinstance(event, Progress)]
            fractions = [p.load_fraction for p in told if p.load_fraction is not None]
            while order[-1:] != [RunnerState.SERVING]:
                await anext(aiter(models))
                for listed in models.models:
                    for runner in listed.runners:
                        assert (runner.model, runner.digest) == (TINY, listed.digest)
                        if runner.state not in order:
                            order.append(runner.state)
        assert order == [RunnerState.STARTING, RunnerState.LOADING, RunnerState.SERVING]
        assert fractions == sorted(fractions)
        assert (await watch.read()).status == SERVING

        # A second name of the same files is served by the same runner.
        await client.copy_model(TINY, "copy")
        assert (await copy.read()).status == SERVING
        whole = await client.complete("copy", "x", max_tokens=1)
        assert (whole.started.model, whole.started.runner) == ("copy", "r1")
        await client.delete_model("copy")
        assert (await copy.read()).status == HealthCheckResponse.SERVICE_UNKNOWN

        assert await client.unload_model(TINY) == 1
        assert (await watch.read()).status == NOT_SERVING
        assert await client.list_models(loaded=True) == ()
        watch.cancel()
        copy.cancel()


async def test_c3_a_runner_that_stays_stopped_is_killed(start: StartController) -> None:
    """As long after it is seen to stall as the stall timeout is, which is less than is usual."""
    controller = start("--stall-timeout", "2s")
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        await client.load_model(TINY)
        runner = controller.runner()
        runner.suspend()
        (killed,) = await controller.logged("killing runner")
        (stalled,) = await controller.logged(to="stalled")
        assert await asyncio.to_thread(gone, [runner], PATIENCE)
    since, until = (datetime.fromisoformat(line["timestamp"]) for line in (stalled, killed))
    assert (until - since).total_seconds() < 15
