"""A runner that is suspended in the middle of its work, as in a paused container."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from headrace.rpc.options import channel_options
from tests.integration.runner.api import ENDLESS, MODEL, TIMEOUT, connected, prompt
from tests.integration.runner.child import serving

STALL = 1.0
"""Seconds."""


async def test_a_runner_that_wakes_in_its_work_is_not_stalled(
    model_home: Path, smollm2_dir: Path
) -> None:
    limit = ("--stall-timeout", str(STALL))
    with serving(model_home, smollm2_dir, "--name", MODEL, *limit) as child:
        channel = grpc.aio.insecure_channel(child.address, options=channel_options(child.address))
        async with asyncio.timeout(TIMEOUT), channel, connected(child.address) as api:
            watch = HealthStub(channel).Watch(HealthCheckRequest())
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            stream = api.stream(prompt("One, two, three,", 24, stop=ENDLESS))
            await stream.until("delta")
            child.signal(signal.SIGSTOP)
            await asyncio.sleep(2 * STALL)  # that long it does not exist
            child.signal(signal.SIGCONT)
            # Its health says nothing new until the stream has ended, and then that it drains.
            assert len((await stream.rest()).token_ids) == 24
            child.signal(signal.SIGTERM)
            assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING
            assert await watch.read() == grpc.aio.EOF
        assert await asyncio.to_thread(child.exit_code) == 0
        assert "no progress" not in child.log
