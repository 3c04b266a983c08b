"""Who loads, waits and goes, seen from outside."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Unpack

import grpc
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from headrace import AsyncClient, AsyncCompletionStream
from headrace.errors import (
    Cancelled,
    DeadlineExceeded,
    DeadlineUnreachable,
    ModelTooLarge,
    QueueFull,
)
from headrace.types import CompletionOptions, Delta, Progress, Runner
from tests.e2e.beside import undisturbed
from tests.e2e.conftest import TINY
from tests.e2e.harness import MODEL, PATIENCE, Controller, StartController, aio_channel, gone

ENDLESS: CompletionOptions = {"max_tokens": 2000, "ignore_eos": True}


@asynccontextmanager
async def decoding(
    client: AsyncClient, **options: Unpack[CompletionOptions]
) -> AsyncIterator[AsyncCompletionStream]:
    """A stream that has had its first token and is far from its end."""
    asked: CompletionOptions = {**ENDLESS, **options}
    async with client.stream_completion(MODEL, "1, 2, 3,", **asked) as stream:
        async for event in stream:
            if isinstance(event, Delta):
                break
        yield stream


async def waits(stream: AsyncCompletionStream) -> None:
    """Return when the stream has heard that it waits."""
    assert isinstance(await anext(aiter(stream)), Progress)


@asynccontextmanager
async def health_of(controller: Controller, model: str) -> AsyncIterator[AsyncIterator[bool]]:
    """The health of a model, now and at every change."""
    async with aio_channel(controller.target) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest(service=f"model/{model}"))

        async def changes() -> AsyncIterator[bool]:
            async for response in watch:
                yield response.status == HealthCheckResponse.SERVING

        yield changes()
        watch.cancel()


async def runner_of(client: AsyncClient, model: str = MODEL) -> Runner | None:
    runners = (await client.get_model(model)).runners
    return runners[0] if runners else None


async def budget_of_one(start: StartController, *arguments: str) -> str:
    """Memory for SmolLM2 or the tiny model, under these settings, but not for both."""
    controller = start(*arguments)
    async with AsyncClient(controller.target) as client:
        needs = {m.name: m.memory_estimate_bytes for m in await client.list_models()}
    return str(needs[MODEL] + needs[TINY] // 2)


async def test_a1_a_full_queue_refuses_at_once(start: StartController) -> None:
    controller = start("--max-concurrency", "1", "--queue-per-model", "1")
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        took: list[float] = []

        async def refused() -> QueueFull:
            began = time.monotonic()
            with pytest.raises(QueueFull) as caught:
                await client.complete(MODEL, "x", max_tokens=1)
            took.append(time.monotonic() - began)
            return caught.value

        # While the model is being loaded.
        began = time.monotonic()
        async with client.stream_completion(MODEL, "x", **ENDLESS) as first:
            await waits(first)
            error = await refused()
            assert error.retry_after
            assert error.metadata == {"queue": "model", "limit": "1"}
            # And when it is loaded.
            async for event in first:
                if isinstance(event, Delta):
                    break
            load = time.monotonic() - began
            async with client.stream_completion(MODEL, "x", max_tokens=1) as second:
                await waits(second)
                await refused()
                first.cancel()
                await second.collect()
        # At once is in a fraction of what a load takes on this machine as it is.
        assert max(took) < load


async def test_a1_the_refusal_has_retry_info(start: StartController) -> None:
    controller = start("--queue-total", "1")
    async with (
        AsyncClient(controller.target, timeout=PATIENCE) as client,
        client.stream_completion(MODEL, "x", max_tokens=1) as first,
        aio_channel(controller.target) as channel,
    ):
        await waits(first)
        load: Any = channel.unary_unary("/headrace.v1.ModelService/LoadModel")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load(b"\x0a\x07tiny:q4", timeout=PATIENCE)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing = dict(caught.value.trailing_metadata() or ())
        status = Status.FromString(trailing["grpc-status-details-bin"])
        kinds = {detail.TypeName(): detail for detail in status.details}
        retry, info = error_details_pb2.RetryInfo(), error_details_pb2.ErrorInfo()
        assert kinds["google.rpc.RetryInfo"].Unpack(retry)
        assert kinds["google.rpc.ErrorInfo"].Unpack(info)
        assert retry.retry_delay.ToMilliseconds() > 0
        assert (info.domain, info.reason) == ("headrace.dev", "QUEUE_FULL")
        assert info.metadata == {"queue": "controller", "limit": "1"}


async def test_a2_a_cancelled_waiter_leaves_nothing(start: StartController) -> None:
    alone = ("--max-concurrency", "1")
    own = start(*alone, "--memory", await budget_of_one(start, *alone), "--preload", MODEL)
    loading = time.monotonic()
    async with AsyncClient(own.target, timeout=PATIENCE) as client, decoding(client) as busy:
        load = time.monotonic() - loading
        # One waits for a place, the other for memory. Both leave at once.
        for model in (MODEL, TINY):
            waiter = client.stream_completion(model, "x", max_tokens=1)
            await waits(waiter)
            began = time.monotonic()
            waiter.cancel()
            with pytest.raises(Cancelled):
                await waiter.collect()
            assert time.monotonic() - began < load
        # Nor does one whose time runs out start anything.
        with pytest.raises((DeadlineExceeded, DeadlineUnreachable)):
            await client.complete(TINY, "x", max_tokens=1, timeout=0.2)
        busy.cancel()
        # Whoever were left in the queue would be served before this.
        await client.complete(MODEL, "x", max_tokens=1)
        assert [model.name for model in await client.list_models(loaded=True)] == [MODEL]
        runner = await runner_of(client)
        assert runner is not None
        assert runner.active_requests == 0
    await own.logged("stream ended", 2, model=TINY)
    about = await own.logged(model=TINY)
    assert {line["message"] for line in about} == {"stream ended"}, "no runner was started"


async def test_a3_two_wait_for_one_load_and_one_leaves(start: StartController) -> None:
    controller = start()
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        first = client.stream_completion(TINY, "x", max_tokens=1)
        second = client.stream_completion(TINY, "x", max_tokens=2)
        await asyncio.gather(waits(first), waits(second))
        first.cancel()
        whole = await second.collect()
        assert whole.usage.output_tokens == 2
        with pytest.raises(Cancelled):
            await first.collect()
        assert (whole.started.runner, len(controller.runners())) == ("r1", 1)


async def test_a4_the_idle_one_of_two_models_goes(start: StartController) -> None:
    own = start("--memory", await budget_of_one(start))
    async with AsyncClient(own.target, timeout=PATIENCE) as client:
        await client.complete(TINY, "x", max_tokens=1)
        async with decoding(client) as busy:
            assert [m.name for m in await client.list_models(loaded=True)] == [MODEL]
            # Now all are busy: the load waits, and begins when the stream has ended.
            waiter = client.stream_completion(TINY, "x", max_tokens=1)
            await waits(waiter)
            assert isinstance(await anext(aiter(busy)), Delta)
            busy.cancel()
            await waiter.collect()
        assert [m.name for m in await client.list_models(loaded=True)] == [TINY]


async def test_a7_a_model_larger_than_the_budget_fails_at_once(start: StartController) -> None:
    controller = start("--memory", "300MiB")
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        loading = time.monotonic()
        await client.load_model(TINY)
        began = time.monotonic()
        with pytest.raises(ModelTooLarge) as caught:
            await client.complete(MODEL, "x", max_tokens=1)
        assert time.monotonic() - began < began - loading, "a load takes longer than a refusal"
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.metadata["has"] == str(300 << 20)
        assert int(caught.value.metadata["needs"]) > 300 << 20
        # Nobody was evicted for it.
        assert [m.name for m in await client.list_models(loaded=True)] == [TINY]


async def test_a7_other_streams_do_not_notice(home: Path, start: StartController) -> None:
    (home / "config.toml").write_text("[models.huge]\nmax_concurrency = 1000000\n")
    controller = start(home=home)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        await client.copy_model(MODEL, "huge")
        async with undisturbed(client):
            for _ in range(20):
                with pytest.raises(ModelTooLarge):
                    await client.complete("huge", "x", max_tokens=1)


async def test_a8_keep_alive(start: StartController) -> None:
    controller = start("--keep-alive", "300ms", "--max-concurrency", "2")
    async with (
        asyncio.timeout(100),
        AsyncClient(controller.target, timeout=PATIENCE) as client,
        health_of(controller, TINY) as serving,
    ):
        assert not await anext(serving)

        # 0: unloaded as soon as it is idle.
        await client.complete(TINY, "x", max_tokens=1, keep_alive=0)
        assert await anext(serving)
        first = controller.runners()
        assert not await anext(serving)
        assert await asyncio.to_thread(gone, first, 10.0)

        # The controller's own, where the request says nothing.
        await client.complete(TINY, "x", max_tokens=1)
        assert await anext(serving)
        assert not await anext(serving)

        # Negative: for good, also after a request that says nothing.
        await client.complete(TINY, "x", max_tokens=1, keep_alive=-1)
        assert await anext(serving)
        await client.complete(TINY, "x", max_tokens=1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(serving), 1.0)
        runner = await runner_of(client, TINY)
        assert runner is not None
        assert (runner.pinned, runner.expires_in) == (True, None)
        assert await client.unload_model(TINY) == 1
        assert controller.runners() == []


async def test_a8_a_keep_alive_cannot_end_under_a_request(start: StartController) -> None:
    controller = start("--preload", MODEL)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        whole = await client.complete(
            MODEL, "1, 2, 3,", keep_alive=0.1, max_tokens=64, ignore_eos=True
        )
    assert whole.usage.output_tokens == 64
    assert whole.timings.decode > 0.1
    (gone,) = await controller.logged(to="dead")
    assert gone["why"] == "KEEP_ALIVE"
    # The log's lines stand in the order of what they tell.
    served: dict[str, Any] = {"from": "serving"}
    (going,) = await controller.logged(**served)
    (ended,) = await controller.logged("stream ended")
    lines = controller.log()
    assert lines.index(ended) < lines.index(going)


async def test_a9_a_deadline_that_cannot_be_met_is_refused_at_once(start: StartController) -> None:
    """Loads are measured, until it is known that one takes longer than the client would wait."""
    controller = start()
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        shortest = estimate = math.inf
        for loads in itertools.count(1):
            began = time.monotonic()
            await client.load_model(TINY)
            shortest = min(shortest, time.monotonic() - began)
            await client.unload_model(TINY)
            try:
                await client.complete(TINY, "x", max_tokens=1, timeout=shortest / 4)
            except DeadlineUnreachable as refusal:
                estimate = float(refusal.metadata["estimate"])
                break
            except DeadlineExceeded:
                assert loads < 20, "what loads take is not learnt"
                await client.unload_model(TINY)
        # It came before the deadline did, and nothing was started for it.
        assert estimate > shortest / 4
        assert await client.list_models(loaded=True) == ()


async def test_priority_goes_first(start: StartController) -> None:
    controller = start("--max-concurrency", "1")
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        ended: list[int] = []

        async def ask(priority: int) -> None:
            async with client.stream_completion(
                TINY, "x", max_tokens=1, priority=priority
            ) as stream:
                await waits(stream)
                queued.release()
                await stream.collect()
            ended.append(priority)

        queued = asyncio.Semaphore(0)
        # All wait for the load.
        tasks = []
        for priority in (0, -5, 5):
            tasks.append(asyncio.create_task(ask(priority)))
            await queued.acquire()
        await asyncio.gather(*tasks)
        assert ended == [5, 0, -5]
