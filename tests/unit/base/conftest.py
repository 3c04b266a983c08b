"""Real servers and channels on loopback for the tests of the base."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import grpc
import pytest

from headrace.rpc.options import channel_options, server_options

Register: TypeAlias = Callable[[grpc.aio.Server], None]
Serve: TypeAlias = Callable[..., Awaitable[str]]
Connect: TypeAlias = Callable[..., Awaitable[grpc.aio.Channel]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start a server with these registrations and interceptors; gives its target."""
    async with AsyncExitStack() as stack:

        async def start(
            *register: Register, interceptors: Sequence[Any] = (), address: str = "127.0.0.1:0"
        ) -> str:
            server = grpc.aio.server(interceptors=list(interceptors), options=server_options())
            for add in register:
                add(server)
            port = server.add_insecure_port(address)
            await server.start()
            stack.push_async_callback(server.stop, None)
            return address if address.startswith("unix:") else f"127.0.0.1:{port}"

        yield start


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open a channel with these interceptors."""
    async with AsyncExitStack() as stack:

        async def open_channel(target: str, *interceptors: Any) -> grpc.aio.Channel:
            channel = grpc.aio.insecure_channel(
                target, options=channel_options(target), interceptors=list(interceptors)
            )
            return await stack.enter_async_context(channel)

        yield open_channel
