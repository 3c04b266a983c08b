"""The least that a relay can be: grpc.aio's own server and client, bytes in and bytes out."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

METHOD = "/headrace.v1.CompletionService/StreamCompletion"


def handler(method: str, stream: Callable[[bytes, Any], Awaitable[None]]) -> Any:
    """Serves a method that answers one message with many."""
    _, service, name = method.split("/")
    made: Any = grpc.unary_stream_rpc_method_handler(stream, None, None)
    return grpc.method_handlers_generic_handler(service, {name: made})


async def until_stdin_ends() -> None:
    """Whoever started this process holds its stdin."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while await reader.read(4096):
        pass
    transport.close()


async def _serve(listen: str, target: str) -> None:
    async with grpc.aio.insecure_channel(target) as channel:
        ask: Any = channel.unary_stream(METHOD)

        async def relay(data: bytes, context: Any) -> None:
            async for message in ask(data):
                await context.write(message)

        server = grpc.aio.server()
        server.add_generic_rpc_handlers((handler(METHOD, relay),))
        server.add_insecure_port(listen)
        await server.start()
        print("ready", flush=True)
        await until_stdin_ends()
        await server.stop(0)


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:]))
