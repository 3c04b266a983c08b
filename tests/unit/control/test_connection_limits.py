"""What clients may have of a controller's connections, with real servers and sockets."""

from __future__ import annotations

import asyncio
import math
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from headrace.rpc import options
from headrace.rpc.health import NOT_SERVING, SERVING, HealthServicer
from headrace.rpc.options import MAX_METADATA_BYTES, ConnectionLimits
from headrace_server import files
from headrace_server.config import parse
from headrace_server.listening import Address

WIDE = ConnectionLimits(connections=64, streams=64, idle=math.inf, age=math.inf)
ASK = HealthCheckRequest()

Serve = Callable[[ConnectionLimits], Awaitable[tuple[str, HealthServicer]]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """A server with these limits: its address, and its health."""
    async with AsyncExitStack() as stack:

        async def make(limits: ConnectionLimits) -> tuple[str, HealthServicer]:
            address = Address("127.0.0.1:0", takeover=False, limits=limits)
            server = grpc.aio.server(options=address.options())
            health = HealthServicer()
            health.add_to(server)
            health.set("", SERVING)
            bound = address.bind(server)
            await server.start()
            stack.push_async_callback(server.stop, None)
            stack.callback(health.shutdown)
            return bound, health

        yield make


@pytest.fixture
def channels() -> list[grpc.aio.Channel]:
    """Of all connections, in their order."""
    return []


@pytest.fixture
async def connect(channels: list[grpc.aio.Channel]) -> AsyncIterator[Callable[[str], Any]]:
    """The health by a connection of one's own, which is tried again soon."""
    async with AsyncExitStack() as stack:

        async def make(target: str) -> Any:
            own = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 50)]
            channel = grpc.aio.insecure_channel(target, options=own)
            channels.append(channel)
            return HealthStub(await stack.enter_async_context(channel))

        yield make


def dial(target: str) -> socket.socket:
    host, _, port = target.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


async def closed(dialled: socket.socket) -> bool:
    """Whether the other side closes a connection on which nothing is said."""

    def read() -> bool:
        try:
            while dialled.recv(4096):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
        return True

    return await asyncio.to_thread(read)


async def test_one_connection_more_is_closed_and_the_others_go_on(
    serve: Serve, connect: Any
) -> None:
    target, health = await serve(replace(WIDE, connections=3))
    watch = (await connect(target)).Watch(ASK)
    assert (await watch.read()).status == SERVING
    with dial(target) as second, dial(target) as third:
        with dial(target) as one_more:
            assert await closed(one_more)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await (await connect(target)).Check(ASK, timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        health.set("", NOT_SERVING)
        assert (await watch.read()).status == NOT_SERVING
        second.close()
        # A place is free as soon as the server has heard of it.
        answer = await (await connect(target)).Check(ASK, timeout=10, wait_for_ready=True)
        assert answer.status == NOT_SERVING
        third.settimeout(0.1)
        assert not await closed(third)


async def test_what_is_idle_is_closed_and_a_stream_is_not_idle(serve: Serve, connect: Any) -> None:
    target, health = await serve(replace(WIDE, idle=1.0))
    watch = (await connect(target)).Watch(ASK)
    assert (await watch.read()).status == SERVING
    asking = await connect(target)
    assert (await asking.Check(ASK, timeout=10)).status == SERVING
    with dial(target) as silent:
        assert await closed(silent)
    health.set("", NOT_SERVING)
    assert (await watch.read()).status == NOT_SERVING
    assert (await asking.Check(ASK, timeout=10, wait_for_ready=True)).status == NOT_SERVING


async def test_who_is_old_takes_no_more_calls_and_ends_those_it_has(
    serve: Serve, connect: Any, channels: list[grpc.aio.Channel]
) -> None:
    target, health = await serve(replace(WIDE, age=1.0))
    stub = await connect(target)
    watch = stub.Watch(ASK)
    assert (await watch.read()).status == SERVING
    async with asyncio.timeout(10):
        await channels[0].wait_for_state_change(grpc.ChannelConnectivity.READY)
    health.set("", NOT_SERVING)
    assert (await watch.read()).status == NOT_SERVING
    assert (await stub.Check(ASK, timeout=10)).status == NOT_SERVING


async def test_a_call_too_many_waits_in_the_client(serve: Serve, connect: Any) -> None:
    target, _ = await serve(replace(WIDE, streams=2))
    stub = await connect(target)
    watches = [stub.Watch(ASK) for _ in range(2)]
    for watch in watches:
        assert (await watch.read()).status == SERVING
    waiting = asyncio.ensure_future(stub.Check(ASK, timeout=10))
    assert (await (await connect(target)).Check(ASK, timeout=10)).status == SERVING
    assert not waiting.done()
    watches[0].cancel()
    assert (await waiting).status == SERVING


async def test_metadata_are_bounded(serve: Serve, connect: Any) -> None:
    target, _ = await serve(WIDE)
    stub = await connect(target)
    fits = (("x", "a" * (MAX_METADATA_BYTES - 1024)),)
    assert (await stub.Check(ASK, metadata=fits, timeout=10)).status == SERVING
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Check(ASK, metadata=(("x", "a" * MAX_METADATA_BYTES),), timeout=10)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    many = tuple((f"x-{i}", "a" * 100) for i in range(MAX_METADATA_BYTES // 100))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Check(ASK, metadata=many, timeout=10)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.Check(ASK, timeout=10)).status == SERVING


async def test_who_connects_and_says_nothing_is_not_waited_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "HANDSHAKE_TIMEOUT", 1.0)
    target, _ = await serve(WIDE)
    with dial(target) as silent:
        assert await closed(silent)


def test_the_limits_are_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse([], {}).connection_limits == ConnectionLimits(1024, 1024, 600.0, math.inf)
    given = ["--max-connections", "5", "--streams-per-connection", "6"]
    given += ["--max-connection-idle", "90", "--max-connection-age", "2h"]
    assert parse(given, {}).connection_limits == ConnectionLimits(5, 6, 90.0, 7200.0)
    with pytest.raises(SystemExit):
        parse(["--max-connection-idle", "0"], {})
    assert "or give forever" in capsys.readouterr().err


def test_a_takeover_renews_connections_sooner() -> None:
    for age in (5.0, 7200.0):
        address = Address("unix:/x", takeover=True, limits=replace(WIDE, age=age))
        assert dict(address.options())["grpc.max_connection_age_ms"] == min(age, 10.0) * 1000


@pytest.mark.parametrize(("hard", "warned"), [(1_000_000, False), (600, True)])
def test_files_are_allowed_for_connections(
    hard: int, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    limit = [(256, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limit[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limit.append(new))
    files.allow_connections(1024)
    assert limit[-1] == (min(hard, 1536), hard)
    assert ("open files" in caplog.text) is warned
