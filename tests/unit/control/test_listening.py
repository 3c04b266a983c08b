"""An address that is bound, handed over and given up, with real servers and sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from headrace.rpc.health import NOT_SERVING, SERVING, HealthServicer
from headrace_server import predecessor
from headrace_server.listening import Address, CannotListenError
from headrace_server.predecessor import TAKEOVER, Predecessor, find


@pytest.fixture
def path() -> Iterator[Path]:
    """Of a socket: short, so not in pytest's own folder."""
    with tempfile.TemporaryDirectory(prefix="hrt-", dir="/tmp") as folder:
        yield Path(folder) / "c.sock"


Serve = Callable[..., "asyncio.Future[tuple[Address, str, grpc.aio.Server]]"]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """(listen, takeover=True, health=SERVING): an address, published, and its server, which can
    hand over."""
    async with AsyncExitStack() as stack:

        async def make(
            listen: str, *, takeover: bool = True, health: int = SERVING
        ) -> tuple[Address, str, grpc.aio.Server]:
            address = Address(listen, takeover=takeover)
            server = grpc.aio.server(options=address.options())
            stack.push_async_callback(server.stop, None)
            servicer = HealthServicer()
            servicer.add_to(server)
            servicer.set(TAKEOVER, health)
            bound = address.bind(server)
            await server.start()
            address.publish()
            return address, bound, server

        yield lambda *args, **options: asyncio.ensure_future(make(*args, **options))


async def check(channel: grpc.aio.Channel) -> int:
    request = HealthCheckRequest(service=TAKEOVER)
    return int((await HealthStub(channel).Check(request, timeout=20)).status)


async def test_a_socket_has_its_path_once_it_is_served(
    path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Path, "chmod")  # It is private when it is made, and not some time later.
    before = os.umask(0)
    try:
        address, bound, server = await serve(f"unix:{path}")
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert bound == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    async with grpc.aio.insecure_channel(bound) as channel:
        assert await check(channel) == SERVING
    await server.stop(None)
    address.close()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("stop_first", [False, True])
async def test_what_is_a_successors_by_now_stays(
    path: Path, serve: Serve, stop_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, bound, server = await serve(f"unix:{path}")
    async with grpc.aio.insecure_channel(bound) as channel:
        assert await check(channel) == SERVING
        inode = path.stat().st_ino
        monkeypatch.setattr(os, "getpid", lambda: 1)  # it is another process in earnest
        await serve(f"unix:{path}")
        monkeypatch.undo()
        assert path.stat().st_ino != inode
        assert await check(channel) == SERVING  # of the old one, still
    if stop_first:
        await server.stop(None)
    old.close()
    await server.stop(None)
    async with grpc.aio.insecure_channel(bound) as channel:
        assert await check(channel) == SERVING


async def test_without_takeover_a_path_in_use_is_refused(path: Path, serve: Serve) -> None:
    await serve(f"unix:{path}")
    with pytest.raises(CannotListenError, match="--takeover"):
        await serve(f"unix:{path}", takeover=False)


async def test_of_two_that_start_at_once_one_gets_the_path(path: Path) -> None:
    first, second = (Address(f"unix:{path}", takeover=False) for _ in range(2))
    server = grpc.aio.server(options=first.options())
    first.bind(server)
    first.publish()
    inode = path.stat().st_ino
    path.with_name(f".{os.getpid():x}").touch()  # as the second has bound it
    with pytest.raises(CannotListenError):
        second.publish()
    second.close()
    assert path.stat().st_ino == inode
    await server.stop(None)


@pytest.mark.skipif(sys.platform != "linux", reason="TCP is handed over on Linux alone")
async def test_what_is_let_go_takes_no_connection_and_keeps_those_it_has(serve: Serve) -> None:
    address, bound, _ = await serve("127.0.0.1:0")
    host, _, port = bound.rpartition(":")
    async with grpc.aio.insecure_channel(bound) as channel:
        assert await check(channel) == SERVING
        address.let_go()
        with pytest.raises(ConnectionRefusedError), socket.create_connection((host, int(port))):
            pass
        assert await check(channel) == SERVING


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "0.0.0.0:0", "localhost:0", "unix"])
async def test_a_predecessor_is_found_by_its_socket(listen: str, path: Path, serve: Serve) -> None:
    if listen != "unix" and sys.platform != "linux":
        pytest.skip("TCP is handed over on Linux alone")
    _, bound, _ = await serve(f"unix:{path}" if listen == "unix" else listen)
    found = await find(bound)
    assert found is not None
    assert (found.pid, found.drains) == (os.getpid(), False)
    found.close()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix"])
async def test_one_that_drains_is_not_waited_for(listen: str, path: Path, serve: Serve) -> None:
    if listen != "unix" and sys.platform != "linux":
        pytest.skip("TCP is handed over on Linux alone")
    listen = f"unix:{path}" if listen == "unix" else listen
    _, bound, _ = await serve(listen, health=NOT_SERVING)
    found = await find(bound)
    assert found is not None
    assert found.drains
    loading = asyncio.create_task(asyncio.sleep(3600), name="loading")
    await asyncio.wait_for(found.may_go(bound, [loading]), 10)
    loading.cancel()
    found.close()


async def test_where_nobody_listens_there_is_no_predecessor(path: Path) -> None:
    assert await find(f"unix:{path}") is None
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert await find(f"unix:{path}") is None
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = f"127.0.0.1:{probe.getsockname()[1]}"
    assert await find(free) is None
    assert await find("127.0.0.1:0") is None


async def test_who_cannot_be_asked_is_no_predecessor(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predecessor, "_ASK_TIMEOUT", 0.2)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(CannotListenError, match="no controller"):
            await find(f"unix:{path}")


@pytest.fixture
def another() -> Iterator[int]:
    """The number of a process that is not this one."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix"])
async def test_of_two_successors_one_takes_over(
    listen: str, path: Path, serve: Serve, another: int
) -> None:
    if listen != "unix" and sys.platform != "linux":
        pytest.skip("TCP is handed over on Linux alone")
    _, bound, _ = await serve(f"unix:{path}" if listen == "unix" else listen)
    still_there, no_more = Predecessor(os.getpid()), Predecessor(another)
    await still_there.may_go(bound, [])
    with pytest.raises(CannotListenError, match=f"process {os.getpid()} has done so"):
        await no_more.may_go(bound, [])
    still_there.close()
    no_more.close()


async def test_a_load_without_end_is_no_reason_to_stay_away(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(predecessor, "PATIENCE", 0.01)
    loading = asyncio.create_task(asyncio.sleep(3600), name="loading")
    found = Predecessor(os.getpid())
    await asyncio.wait_for(found.may_go(f"unix:{path}", [loading]), 10)
    assert "still to be loaded" in caplog.text
    assert not loading.done()
    loading.cancel()
    found.close()
