"""A runner's services on a real server in this process, and a channel to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from headrace.host.handover import ReportWriter
from headrace.host.machine import Machine, describe
from headrace.rpc.options import channel_options, server_options
from headrace.rpc.service import server_interceptors
from headrace_runner.config import RunnerConfig, parse
from headrace_runner.served import Served
from headrace_runner.starting import Start

Prepare = Callable[[RunnerConfig, Machine, ReportWriter, Start], Served]


@asynccontextmanager
async def services_of(
    prepare: Prepare, directory: Path, socket: Path, name: str, *arguments: str
) -> AsyncIterator[tuple[Served, grpc.aio.Channel]]:
    """What `prepare` makes of the model in `directory`, which is not loaded yet."""
    config = parse(["--model", str(directory), "--name", name, "--digest", "sha256:ab", *arguments])
    made = prepare(config, describe(), ReportWriter(None), Start())
    server = grpc.aio.server(options=server_options(), interceptors=server_interceptors())
    made.add_to(server)
    address = f"unix:{socket}"
    server.add_insecure_port(address)
    await server.start()
    try:
        async with (
            asyncio.timeout(60),
            grpc.aio.insecure_channel(address, options=channel_options(address)) as channel,
        ):
            # Calls that are made while it connects arrive in any order.
            await channel.channel_ready()
            yield made, channel
    finally:
        await server.stop(0)
        await made.runner.engine.stop()
