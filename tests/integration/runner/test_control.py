"""Looking after a runner: what it says of itself, and how requests and it are ended."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from headrace.errors import Cancelled, Draining, QueueFull
from headrace.v1.common_pb2 import RunnerState
from headrace.v1.runner_pb2 import AbortRequest, DrainRequest, WatchRunnerRequest
from tests.integration.runner.api import ENDLESS, TIMEOUT, Api, connected, prompt
from tests.integration.runner.conftest import ServeTiny


async def abort(api: Api, request_id: str) -> bool:
    return (await api.runner.Abort(AbortRequest(request_id=request_id), timeout=TIMEOUT)).found


async def test_abort_ends_a_stream_with_cancelled(tiny: Api) -> None:
    stream = tiny.stream(prompt("fox", 90_000, request_id="mine", stop=ENDLESS))
    await stream.until("delta")
    assert not await abort(tiny, "another")
    assert await abort(tiny, "mine")
    with pytest.raises(Cancelled, match="aborted"):
        await stream.rest()
    assert not await abort(tiny, "mine")


async def test_abort_ends_all_of_one_id(tiny: Api) -> None:
    request = prompt("fox", 90_000, request_id="mine", stop=ENDLESS)
    streams = [tiny.stream(request) for _ in range(2)]
    for stream in streams:
        await stream.until("delta")
    assert await abort(tiny, "mine")
    for stream in streams:
        with pytest.raises(Cancelled, match="aborted"):
            await stream.rest()
    assert not await abort(tiny, "mine")


async def test_abort_ends_a_request_that_waits(tiny: Api) -> None:
    running = [tiny.stream(prompt("fox", 90_000, stop=ENDLESS)) for _ in range(2)]
    for stream in running:
        await stream.until("delta")
    waits = tiny.stream(prompt("fox", 5, request_id="waits"))
    runner = await tiny.watch_until(lambda r: r.load.waiting == 1)
    assert runner.load.running == 2
    assert await abort(tiny, "waits")
    with pytest.raises(Cancelled, match="aborted"):
        await waits.rest()
    for stream in running:
        stream.call.cancel()


async def test_a_stream_that_nobody_reads_can_be_aborted(tiny: Api) -> None:
    stream = tiny.stream(prompt("fox", 90_000, request_id="unread", stop=ENDLESS))
    await tiny.watch_until(lambda r: r.load.output_tokens_total > 0 and r.load.running == 1)
    assert await abort(tiny, "unread")
    with pytest.raises(Cancelled, match="aborted"):
        await stream.rest()


async def test_an_abort_in_the_middle_of_a_send_is_told_as_well(tiny: Api) -> None:
    async def one(number: int) -> None:
        stream = tiny.stream(prompt("fox", 90_000, request_id=f"r{number}", stop=ENDLESS))
        for _ in range(1 + number % 7):
            await stream.next()
        aborting = asyncio.ensure_future(abort(tiny, f"r{number}"))
        with pytest.raises(Cancelled, match="aborted"):
            await stream.rest()
        assert await aborting

    for number in range(0, 100, 2):
        await asyncio.gather(one(number), one(number + 1))


async def test_a_request_too_many_is_refused_at_once(tiny: Api) -> None:
    taken = [tiny.stream(prompt("fox", 90_000, stop=ENDLESS)) for _ in range(2)]
    for stream in taken:
        await stream.until("delta")
    taken.append(tiny.stream(prompt("fox", 1)))
    await tiny.watch_until(lambda r: r.load.waiting == 1)
    with pytest.raises(QueueFull) as caught:
        await tiny.complete(prompt("fox", 1))
    assert caught.value.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.metadata == {"queue": "runner", "limit": "1"}
    assert caught.value.retry_after
    taken[0].call.cancel()
    await taken[2].rest()  # It got the place that became free.
    taken[1].call.cancel()


async def test_watch_tells_of_work_and_of_its_end(tiny: Api) -> None:
    before = await tiny.describe()
    watch = tiny.runner.WatchRunner(WatchRunnerRequest(), timeout=TIMEOUT)
    events = aiter(watch)
    first = (await anext(events)).runner
    assert (first.id, first.state) == (before.id, RunnerState.RUNNER_STATE_SERVING)
    stream = tiny.stream(prompt("fox", 90_000, stop=ENDLESS))
    async with asyncio.timeout(TIMEOUT):
        while (await anext(events)).runner.load.running != 1:
            pass
        await stream.until("delta")
        stream.call.cancel()
        while (await anext(events)).runner.load.running != 0:
            pass
    watch.cancel()
    after = await tiny.describe()
    assert after.load.requests_total == before.load.requests_total + 1
    assert after.load.output_tokens_total > before.load.output_tokens_total
    assert after.uptime.ToNanoseconds() > before.uptime.ToNanoseconds()


async def test_a_runner_tells_of_its_steps_and_of_its_prefix_cache(tiny: Api) -> None:
    before = (await tiny.idle()).load
    for _ in range(2):
        await tiny.complete(prompt("a prompt that nobody else here begins with", 6, stop=ENDLESS))
    load = (await tiny.idle()).load
    assert load.prompts_total == before.prompts_total + 2
    assert load.cached_prompts_total >= before.cached_prompts_total + 1
    for now, then in (
        (load.step_seconds, before.step_seconds),
        (load.step_rows, before.step_rows),
    ):
        assert list(now.bounds) == sorted(now.bounds)
        assert len(now.counts) == len(now.bounds) + 1
        assert sum(now.counts) >= sum(then.counts) + 2
        assert now.sum > then.sum


async def test_drain_waits_for_what_runs(serve_tiny: ServeTiny) -> None:
    with serve_tiny("--listen", "127.0.0.1:0") as child:
        assert child.address.startswith("127.0.0.1:")
        assert not child.address.endswith(":0")
        async with connected(child.address) as api:
            assert await api.healthy()
            stream = api.stream(prompt("fox", 700, stop=ENDLESS))
            await stream.until("delta")
            draining = asyncio.ensure_future(
                api.runner.Drain(DrainRequest(grace=Duration(seconds=60)), timeout=TIMEOUT)
            )
            runner = await api.watch_until(lambda r: r.state == RunnerState.RUNNER_STATE_DRAINING)
            assert runner.load.running == 1
            assert not await api.healthy()
            with pytest.raises(Draining) as caught:
                await api.complete(prompt("fox", 1))
            assert caught.value.retry_after
            assert not draining.done()
            assert len((await stream.rest()).token_ids) == 700
            assert (await draining).aborted == 0


async def test_drain_ends_what_is_too_slow(serve_tiny: ServeTiny) -> None:
    with serve_tiny("--listen", "localhost:0") as child:
        async with connected(child.address) as api:
            streams = [api.stream(prompt("fox", 90_000, stop=ENDLESS)) for _ in range(2)]
            for stream in streams:
                await stream.until("delta")
            grace = Duration(nanos=10_000_000)
            answer = await api.runner.Drain(DrainRequest(grace=grace), timeout=TIMEOUT)
            assert answer.aborted == 2
            for stream in streams:
                with pytest.raises(Draining):
                    await stream.rest()
            # What no clock can count is taken for very long, and there is nothing to wait for.
            grace = Duration(seconds=2**62)
            assert (await api.runner.Drain(DrainRequest(grace=grace), timeout=5)).aborted == 0
