"""Clients and controllers that go: what stops with them, and what does not."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import psutil
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from headrace import AsyncClient, AsyncCompletionStream
from headrace.errors import Draining, Unavailable
from headrace.types import Delta, FinishReason, Progress
from headrace.v1.runner_pb2 import Runner, WatchRunnerRequest
from headrace.v1.runner_pb2_grpc import RunnerServiceStub
from tests.e2e.conftest import TINY
from tests.e2e.harness import (
    MODEL,
    PATIENCE,
    Controller,
    StartController,
    aio_channel,
    gone,
    headrace,
    runner_address,
    start_headrace,
)


@asynccontextmanager
async def decoding(controller: Controller, tokens: int) -> AsyncIterator[AsyncCompletionStream]:
    """A stream that has had its first token."""
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        stream = client.stream_completion(
            MODEL, "1, 2, 3,", temperature=0, max_tokens=tokens, ignore_eos=True
        )
        async for event in stream:
            if isinstance(event, Delta):
                break
        yield stream


async def is_loading(stream: AsyncCompletionStream) -> None:
    """Return when the stream has heard that its model is being loaded."""
    async for event in stream:
        if isinstance(event, Progress) and event.load_fraction is not None:
            return


async def drain(controller: Controller, number: signal.Signals) -> None:
    """Send a signal, and return when the controller says that it does not serve any more."""
    async with asyncio.timeout(PATIENCE), aio_channel(controller.target) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest())
        assert (await watch.read()).status == HealthCheckResponse.SERVING
        controller.send(number)
        assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
        assert await watch.read() == grpc.aio.EOF


async def runner_says(address: str, wanted: Callable[[Runner], bool]) -> Runner:
    """The runner's own report, once it is as wanted."""
    async with asyncio.timeout(PATIENCE), aio_channel(address) as channel:
        async for response in RunnerServiceStub(channel).WatchRunner(WatchRunnerRequest()):
            if wanted(response.runner):
                return response.runner
    raise AssertionError("the runner has gone")


def is_busy(runner: Runner) -> bool:
    return runner.load.running == 1


def is_free(runner: Runner) -> bool:
    """No row, and nothing of its KV cache but what is remembered for others."""
    load, memory = runner.load, runner.memory
    idle = load.running == load.waiting == memory.kv_reserved_bytes == 0
    return idle and memory.kv_bytes == memory.prefix_cache_bytes


async def test_b1_a_client_that_is_gone_frees_its_row(start: StartController) -> None:
    """It stops reading, then is killed: no goodbye, no end of the stream."""
    controller = start("--preload", MODEL, "--max-concurrency", "1")
    controller_sees = AsyncClient(controller.target, timeout=PATIENCE)
    async with controller_sees as client:
        await client.load_model(MODEL)
        address = runner_address(controller.runner())
        with start_headrace(controller, "run", MODEL, "Count.", "--max-tokens", "4000") as caller:
            await runner_says(address, is_busy)
            caller.send_signal(signal.SIGSTOP)
            caller.kill()
            caller.communicate(timeout=PATIENCE)
        idle = await runner_says(address, is_free)
        assert idle.load.output_tokens_total < 2000
        # The only row is free.
        whole = await client.complete(MODEL, "1, 2, 3,", temperature=0, max_tokens=3)
        assert whole.text.startswith(" 4")
        assert whole.timings.queue < 5


async def test_b1_a_channel_that_closes_mid_decode(controller: Controller) -> None:
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        await client.load_model(MODEL)
        address = runner_address(controller.runner())
        async with decoding(controller, 4000):
            await runner_says(address, is_busy)
        idle = await runner_says(address, is_free)
        # Stopped by then, and not at its end.
        assert idle.load.output_tokens_total < 4000


async def test_c5_sigkill_of_the_controller(start: StartController) -> None:
    """No runner is left after two seconds: neither a busy one, nor an idle one, nor a loading."""
    controller = start("--preload", MODEL)
    async with decoding(controller, 4000) as stream:
        (busy,) = controller.runners()
        async with AsyncClient(controller.target) as client:
            loading = client.stream_completion(TINY, "x", max_tokens=1)
            await is_loading(loading)
            async with asyncio.timeout(PATIENCE):  # The order to load comes before its process.
                while len(runners := controller.runners()) < 2:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.02)
            assert busy in runners
            controller.kill()
            assert await asyncio.to_thread(gone, runners, 2.0)
            for broken in (stream, loading):
                with pytest.raises(Unavailable):
                    await broken.collect()
    assert controller.processes() == []


async def test_c9_two_controllers_on_one_store(
    controller: Controller, start: StartController
) -> None:
    other = start()
    async with (
        AsyncClient(controller.target, timeout=PATIENCE) as ours,
        AsyncClient(other.target, timeout=PATIENCE) as theirs,
    ):
        asked = [
            client.complete(MODEL, "1, 2, 3,", temperature=0, max_tokens=4)
            for client in (ours, theirs, ours, theirs)
        ]
        answers = await asyncio.gather(*asked)
        assert len({answer.text for answer in answers}) == 1
        assert {other.runner().pid}.isdisjoint({runner.pid for runner in controller.runners()})
        await theirs.copy_model(TINY, "their-name")
        assert (await ours.get_model("their-name")).name == "their-name:latest"
        await ours.delete_model("their-name")
        # One is killed while the other serves.
        async with decoding(controller, 8) as stream:
            other.kill()
            assert (await stream.collect()).usage.output_tokens == 8


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
    ids=["SIGTERM", "SIGINT"],
)
async def test_c6_a_signal_lets_running_streams_finish(
    number: signal.Signals, start: StartController
) -> None:
    controller = start("--preload", MODEL, "--grace", "60s")
    async with decoding(controller, 64) as stream, AsyncClient(controller.target) as client:
        runners = controller.runners()
        await drain(controller, number)
        # What is new is refused.
        with pytest.raises(Draining) as refused:
            await client.complete(TINY, "x", max_tokens=1)
        assert refused.value.retry_after
        assert not await client.health()
        whole = await stream.collect()
        assert whole.usage.output_tokens == 64
        assert whole.finish_reason is FinishReason.LENGTH
        assert await asyncio.to_thread(controller.wait) == 0
    left_nothing(controller, runners)


async def test_c6_a_second_signal_ends_them_now(start: StartController) -> None:
    controller = start("--preload", MODEL, "--grace", "60s")
    async with decoding(controller, 4000) as stream:
        runners = controller.runners()
        await drain(controller, signal.SIGTERM)
        controller.send(signal.SIGTERM)
        await ends_with_draining(stream)
        assert await asyncio.to_thread(controller.wait) == 0
    left_nothing(controller, runners)


async def test_c6_the_grace_has_an_end(start: StartController) -> None:
    controller = start("--preload", MODEL, "--grace", "500ms")
    async with decoding(controller, 4000) as stream:
        runners = controller.runners()
        began = time.monotonic()
        controller.send(signal.SIGTERM)
        await ends_with_draining(stream)
        assert await asyncio.to_thread(controller.wait) == 0
        assert 0.5 <= time.monotonic() - began < 15
    left_nothing(controller, runners)


async def test_c6_the_end_of_stdin_is_a_signal(start: StartController) -> None:
    controller = start("--preload", MODEL)
    async with decoding(controller, 5) as stream:
        runners = controller.runners()
        assert controller.process.stdin is not None
        controller.process.stdin.close()
        assert (await stream.collect()).usage.output_tokens == 5
        assert await asyncio.to_thread(controller.wait) == 0
    left_nothing(controller, runners)


async def test_c6_while_a_model_is_loading(start: StartController) -> None:
    controller = start()
    async with AsyncClient(controller.target) as client:
        waiter = client.stream_completion(MODEL, "x", max_tokens=1)
        await is_loading(waiter)
        async with asyncio.timeout(PATIENCE):
            # It is said that a load begins before there is a process for it.
            while not (runners := controller.runners()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        controller.send(signal.SIGTERM)
        await ends_with_draining(waiter)
        assert await asyncio.to_thread(controller.wait) == 0
    left_nothing(controller, runners)


def test_an_address_that_is_taken(controller: Controller, start: StartController) -> None:
    own = start()
    for target in (controller.target, own.target):
        ended = headrace(own, "serve", "--listen", target, check=False)
        assert ended.returncode == 1
        assert "--listen" in ended.stderr
        assert "Traceback" not in ended.stderr
    # The one that listens there is not disturbed.
    assert headrace(own, "list").returncode == 0


def test_a_socket_that_was_left_is_taken_over(start: StartController) -> None:
    killed = start()
    killed.kill()
    socket = killed.sockets / "c.sock"
    assert socket.exists()
    heir = start(listen=f"unix:{socket}")
    assert headrace(heir, "list").returncode == 0


async def ends_with_draining(stream: AsyncCompletionStream) -> None:
    with pytest.raises(Draining) as caught:
        await stream.collect()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def left_nothing(controller: Controller, runners: list[psutil.Process]) -> None:
    assert len(runners) == 1
    assert gone(runners, 0.1)
    assert controller.processes() == []
    assert list(controller.sockets.iterdir()) == []
