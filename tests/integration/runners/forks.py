"""Starts many processes from a busy controller's event loop, and counts how they end."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

# Before gRPC, as in a controller.
import headrace_server.__main__  # noqa: F401

# isort: split

import grpc.aio
import uvloop


async def ticks(request: bytes, context: object) -> AsyncIterator[bytes]:
    while True:
        yield request
        await asyncio.sleep(0.001)


async def read(address: str) -> None:
    """Read for as long as there is something; where nobody listens that is never."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: Callable[..., Any] = channel.unary_stream("/ticks/Ticks")
        async for _ in call(b"x", wait_for_ready=True):
            pass


async def count(folder: str, children: int) -> Counter[int]:
    """The exit statuses of so many children."""
    handler = grpc.unary_stream_rpc_method_handler(ticks)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("ticks", {"Ticks": handler}),)
    )
    server.add_insecure_port(f"unix:{folder}/t.sock")
    await server.start()
    addresses = [f"unix:{folder}/t.sock", f"unix:{folder}/none.sock"] * 2
    readers = [asyncio.create_task(read(address)) for address in addresses]
    statuses: Counter[int] = Counter()
    for _ in range(children):
        child = await asyncio.create_subprocess_exec("true")
        statuses[await child.wait()] += 1
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await server.stop(None)
    return statuses


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(dict(runner.run(count(sys.argv[1], int(sys.argv[2])))))
