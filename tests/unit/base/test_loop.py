"""The event loop of services: one turn for all that gRPC has done."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from headrace.rpc import loop

ROOT = Path(__file__).resolve().parents[3]
STREAMS = 32
MESSAGES = 50


@pytest.mark.parametrize("wakes", [1, 2, 500])
def test_for_all_who_have_woken_it_up_a_queue_is_handled_once(wakes: int) -> None:
    reading, writing = socket.socketpair()
    with reading, writing:
        writing.sendall(b"1" * wakes)
        handled: list[bytes] = []
        loop.hear(reading, lambda: handled.append(reading.recv(1)))
        assert handled == [b"1"]
        reading.setblocking(False)
        with pytest.raises(BlockingIOError):
            reading.recv(1)


def test_streams_that_move_together_are_heard_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holds gRPC to what `hear` relies on as well: were something left in its queue, a stream would
    never end."""
    turns = 0
    inner = loop.hear

    def counted(woken: socket.socket, handle: Callable[[], object]) -> None:
        nonlocal turns
        turns += 1
        inner(woken, handle)

    monkeypatch.setattr(loop, "hear", counted)
    counts = loop.run(asyncio.wait_for(_streams(f"unix:{tmp_path}/s"), 60))
    assert counts == [MESSAGES] * STREAMS
    # Of each message two bytes tell: that it was sent, and that it has come.
    assert 0 < turns < STREAMS * MESSAGES


async def _streams(address: str) -> list[int]:
    async def answer(_: bytes, context: Any) -> None:
        for number in range(MESSAGES):
            await context.write(b"%d" % number)

    server = grpc.aio.server()
    made: Any = grpc.unary_stream_rpc_method_handler(answer, None, None)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("S", {"M": made}),))
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:

        async def count() -> int:
            call: Any = channel.unary_stream("/S/M")
            return len([message async for message in call(b"")])

        counts = await asyncio.gather(*(count() for _ in range(STREAMS)))
    await server.stop(None)
    return counts


def test_services_run_in_it() -> None:
    """What else they would do, nobody would see but by its cost."""
    for package in ("server/headrace_server", "runner/headrace_runner"):
        for path in (ROOT / package).rglob("*.py"):
            assert "asyncio.run(" not in path.read_text(encoding="utf-8"), path


def test_other_readers_are_called_for_each_byte_that_they_leave() -> None:
    async def read() -> list[bytes]:
        reading, writing = socket.socketpair()
        seen: list[bytes] = []
        done = asyncio.get_running_loop().create_future()

        def take(wanted: int) -> None:
            seen.append(reading.recv(1))
            if len(seen) == wanted:
                done.set_result(seen)

        with reading, writing:
            asyncio.get_running_loop().add_reader(reading, take, 3)
            writing.send(b"abc")
            await asyncio.wait_for(done, 10)
            asyncio.get_running_loop().remove_reader(reading)
        return seen

    assert loop.run(read()) == [b"a", b"b", b"c"]
