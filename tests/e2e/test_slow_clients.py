"""Clients that do not read, or leave: what the runner does of it, through both processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from headrace.v1.completion_pb2 import LogprobsOptions, StreamCompletionRequest
from headrace.v1.runner_pb2 import Runner
from headrace_server.store import Store
from tests.e2e.harness import Controller, StartController, runner_address
from tests.integration.runner.api import ENDLESS, GREEDY, Api, connected
from tests.unit.convert.tiny import write_gguf

TALKER = "talker:f32"
"""A thousand tokens a second, and a context that holds them."""
LONG = 6000
SEEN_LATE = 500
"""Tokens that a report may be behind: it is made a few times a second."""
NARROW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
"""A connection that takes little in advance; gRPC's own would grow to megabytes."""


@pytest.fixture
def talker(home: Path, tmp_path: Path, start: StartController) -> Controller:
    path = tmp_path / "talker.gguf"
    write_gguf(path, matrices="F32", embedding="F32", edit=lambda w: w.add_context_length(100_000))
    asyncio.run(Store(home).import_model(path, TALKER))
    return start("--preload", TALKER, home=home)


def bulky(max_tokens: int) -> StreamCompletionRequest:
    """Log-probabilities make messages large, so that what the transport takes is full soon."""
    return StreamCompletionRequest(
        model=TALKER,
        prompt="fox",
        sampling=GREEDY,
        stop=ENDLESS,
        max_tokens=max_tokens,
        logprobs=LogprobsOptions(enabled=True, top=20),
    )


def parked(runner: Runner, streams: int) -> bool:
    return runner.load.running == 0 and runner.load.waiting == streams


@asynccontextmanager
async def both_ends(controller: Controller) -> AsyncIterator[tuple[Api, Api, Api]]:
    """The controller, the same over a narrow connection, and its runner."""
    async with connected(controller.target) as api, connected(controller.target, *NARROW) as narrow:
        await api.complete(bulky(1))
        async with connected(runner_address(controller.runner())) as runner:
            yield api, narrow, runner


async def test_clients_that_do_not_read_are_not_generated_for(talker: Controller) -> None:
    streams = 3
    async with both_ends(talker) as (api, narrow, runner):
        expected = await api.complete(bulky(LONG))
        before = (await runner.idle()).load.output_tokens_total
        controller = psutil.Process(talker.pid)
        memory = controller.memory_info().rss
        slow = [narrow.stream(bulky(LONG)) for _ in range(streams)]
        for stream in slow:
            await stream.until("delta")
        now = await runner.watch_until(lambda runner: parked(runner, streams))
        assert now.load.output_tokens_total - before < streams * LONG * 0.8
        # What is under way belongs to the transport, within its windows.
        assert controller.memory_info().rss - memory < streams * (4 << 20)
        # Others are served meanwhile, and these have nothing of it.
        await api.complete(bulky(50))
        assert parked(await runner.describe(), streams)
        # They go on as soon as they are read, where they were.
        for answer in await asyncio.gather(*(stream.rest() for stream in slow)):
            assert answer.token_ids == expected.token_ids
            assert answer.text == expected.text


@pytest.mark.parametrize("reads", [True, False])
async def test_a_client_that_cancels_is_not_generated_for(talker: Controller, reads: bool) -> None:
    async with both_ends(talker) as (api, narrow, runner):
        before = (await runner.idle()).load
        stream = narrow.stream(bulky(90_000))
        await stream.until("delta")
        if not reads:
            await runner.watch_until(lambda runner: parked(runner, 1))
        stream.call.cancel()
        gone = await runner.idle()
        assert gone.load.requests_total == before.requests_total + 1
        assert gone.memory.kv_reserved_bytes == 0
        assert gone.load.output_tokens_total - before.output_tokens_total < 90_000
        # Nothing more comes of it.
        await api.complete(bulky(1))
        later = await runner.describe()
        assert later.load.output_tokens_total <= gone.load.output_tokens_total + 1 + SEEN_LATE
