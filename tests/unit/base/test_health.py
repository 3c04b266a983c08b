"""The health service, over real connections."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace.rpc.health import NOT_SERVING, SERVICE_UNKNOWN, SERVING, HealthServicer
from headrace.rpc.options import server_options
from headrace.rpc.service import server_interceptors


@pytest.fixture
def health() -> HealthServicer:
    return HealthServicer()


@pytest.fixture
async def stub(serve: Any, connect: Any, health: HealthServicer) -> Any:
    target = await serve(health.add_to, interceptors=server_interceptors())
    return health_pb2_grpc.HealthStub(await connect(target))


def ask(service: str = "") -> Any:
    return health_pb2.HealthCheckRequest(service=service)


async def test_nothing_serves_before_it_is_said(stub: Any, health: HealthServicer) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(ask())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    health.set("", SERVING)
    assert (await stub.Check(ask())).status == SERVING


async def test_watch_follows_a_service_from_unknown_to_gone(
    stub: Any, health: HealthServicer
) -> None:
    watch = stub.Watch(ask("model/a"))
    async with asyncio.timeout(5):
        assert (await watch.read()).status == SERVICE_UNKNOWN
        for status in (NOT_SERVING, SERVING, SERVICE_UNKNOWN):
            health.set("model/b", SERVING)
            health.set("model/a", status)
            assert (await watch.read()).status == status


async def test_list(stub: Any, health: HealthServicer) -> None:
    health.set("", SERVING)
    health.set("model/a", NOT_SERVING)
    health.set("model/b", SERVING)
    health.set("model/b", SERVICE_UNKNOWN)
    listed = (await stub.List(health_pb2.HealthListRequest())).statuses
    assert {name: entry.status for name, entry in listed.items()} == {
        "": SERVING,
        "model/a": NOT_SERVING,
    }


async def test_shutdown_ends_watches_and_stays(stub: Any, health: HealthServicer) -> None:
    health.set("", SERVING)
    watches = [stub.Watch(ask()) for _ in range(3)]
    async with asyncio.timeout(5):
        for watch in watches:
            assert (await watch.read()).status == SERVING
        health.shutdown()
        health.set("", SERVING)
        for watch in watches:
            assert (await watch.read()).status == NOT_SERVING
            assert await watch.read() is grpc.aio.EOF
            assert await watch.code() is grpc.StatusCode.OK
    assert (await stub.Check(ask())).status == NOT_SERVING


async def test_an_open_watch_does_not_hold_up_the_stop(connect: Any) -> None:
    health = HealthServicer()
    server = grpc.aio.server(interceptors=server_interceptors(), options=server_options())
    health.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    health.set("", SERVING)
    watch = health_pb2_grpc.HealthStub(await connect(f"127.0.0.1:{port}")).Watch(ask())
    async with asyncio.timeout(5):
        await watch.read()
        health.shutdown()
        await server.stop(60)


async def test_nobody_asks_for_a_name_of_a_thousand_bytes(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(ask("x" * 2000))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(caught.value.details() or "") < 300
