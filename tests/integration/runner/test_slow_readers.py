"""Clients that read slowly, over a real connection: their rows wait, and others do not."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from headrace.v1.completion_pb2 import LogprobsOptions, StreamCompletionRequest
from headrace.v1.runner_pb2 import Runner
from tests.integration.runner.api import ENDLESS, Api, connected, prompt
from tests.integration.runner.child import Child

LONG = 2000
WINDOW = 1 << 16
"""Bytes that the transport takes for a reader who does not come."""


@pytest.fixture
async def narrow(tiny_runner: Child) -> AsyncIterator[Api]:
    """A connection that takes little in advance; gRPC's own would grow to megabytes."""
    bounds = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", WINDOW)]
    async with connected(tiny_runner.address, *bounds) as api:
        yield api


def bulky(max_tokens: int) -> StreamCompletionRequest:
    """Log-probabilities make messages large, so that the window is full soon."""
    logprobs = LogprobsOptions(enabled=True, top=20)
    return prompt("fox", max_tokens, stop=ENDLESS, logprobs=logprobs)


def parked(runner: Runner) -> bool:
    return runner.load.running == 0 and runner.load.waiting == 1


async def test_a_client_that_does_not_read_is_not_generated_for(tiny: Api, narrow: Api) -> None:
    before = await tiny.idle()
    slow = narrow.stream(bulky(LONG))
    await slow.until("delta")
    runner = await tiny.watch_until(parked)
    assert runner.load.output_tokens_total - before.load.output_tokens_total < LONG
    # Others have its place, health is well, and meanwhile nothing comes of it.
    other = await tiny.complete(prompt("fox", LONG, stop=ENDLESS))
    assert await tiny.healthy()
    assert parked(await tiny.describe())
    # It goes on where it was as soon as it is read.
    whole = await slow.rest()
    assert (whole.text, whole.token_ids) == (other.text, other.token_ids)
    assert [each.token_id for each in whole.logprobs] == whole.token_ids


async def test_a_client_that_never_reads_and_goes_leaves_nothing(tiny: Api, narrow: Api) -> None:
    slow = narrow.stream(bulky(90_000))
    await tiny.watch_until(parked)
    slow.call.cancel()
    freed = await tiny.idle()
    assert freed.memory.kv_reserved_bytes == 0
