"""Health and models' states, while the machine is busy too."""

from __future__ import annotations

import asyncio
import statistics
import time

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
    runner_address,
)

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING


async def test_c7_health_answers_while_the_model_reads_a_long_prompt(
    controller: Controller,
) -> None:
    latencies: dict[str, list[float]] = {"controller": [], "runner": []}
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        await client.load_model(MODEL)
        targets = {
            "controller": controller.target,
            "runner": runner_address(controller.runner()),
        }
        stream = client.stream_completion(MODEL, token_ids=[100] * 4000, max_tokens=1)
        async for event in stream:
            if isinstance(event, Progress) and event.prompt_tokens_done:
                break

        async def probe(name: str) -> None:
            async with aio_channel(targets[name]) as channel:
                stub = HealthStub(channel)
                await stub.Check(HealthCheckRequest())  # connects
                end = time.perf_counter() + 2.0
                while (began := time.perf_counter()) < end:
                    answer = await stub.Check(HealthCheckRequest())
                    latencies[name].append(time.perf_counter() - began)
                    assert answer.status == SERVING
                    await asyncio.sleep(0.02)

        await asyncio.gather(probe("controller"), probe("runner"))
        # It was reading all the while.
        events = [await anext(aiter(stream)) for _ in range(2)]
        assert all(isinstance(event, Progress) for event in events)
        stream.cancel()
    for name, seconds in latencies.items():
        assert len(seconds) > 20, name
        assert statistics.median(seconds) < 0.05, (name, seconds)
        # One in twenty may meet a scheduler that has two cores for everything.
        assert sorted(seconds)[len(seconds) * 19 // 20] < 0.1, (name, seconds)
        assert max(seconds) < 0.5, (name, seconds)


async def test_the_services_and_the_models_have_a_health(channel: grpc.aio.Channel) -> None:
    stub = HealthStub(channel)
    listed = (await stub.List(HealthListRequest())).statuses
    services = {
        "": SERVING,
        "headrace.v1.CompletionService": SERVING,
        "headrace.v1.TokenizeService": SERVING,
        "headrace.v1.ModelService": SERVING,
        # They refuse every call in this version.
        "headrace.v1.ImageService": NOT_SERVING,
        "headrace.v1.EmbeddingService": NOT_SERVING,
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
        states: list[RunnerState] = []
        fractions: list[float] = []
        async with client.stream_completion(TINY, "x", max_tokens=1) as stream:
            async for event in stream:
                for listed in await client.list_models(loaded=True):
                    (runner,) = listed.runners
                    states.append(runner.state)
                    assert (runner.model, runner.digest) == (TINY, listed.digest)
                if isinstance(event, Progress) and event.load_fraction is not None:
                    fractions.append(event.load_fraction)
        order = list(dict.fromkeys(states))
        assert order[-1] is RunnerState.SERVING
        assert set(order[:-1]) <= {RunnerState.STARTING, RunnerState.LOADING}
        assert RunnerState.LOADING in order
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
