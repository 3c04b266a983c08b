"""The controller whose address is to be taken over: found, asked, told.

It is found by what the kernel knows of the socket, never by a file that may be of another time, and
asked whether it can hand over before it is sent a signal.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import cast

import grpc.aio
import psutil
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from headrace.rpc.health import SERVING
from headrace.rpc.options import channel_options
from headrace_server.listening import CannotListenError

logger = logging.getLogger(__name__)

HAND_OVER = signal.SIGUSR2
"""Sent by a successor once it serves."""
TAKEOVER = "headrace.takeover"
"""A name in the health service of those who can hand over."""

PATIENCE = 600.0
"""Seconds that a successor's models may take to load before it takes over without them."""

_ASK_TIMEOUT = 5.0  # seconds
_LOCAL_PEERPID = 2  # of macOS


class Predecessor:
    """A process that listens where this one is to."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.drains = False
        """Whether it is stopping already, and serves nobody new."""
        # Another process may get the number; this stays the process's own.
        self._fd = os.pidfd_open(pid) if sys.platform == "linux" else None

    def tell(self) -> None:
        """Have it hand over, or only stop to listen if it drains; harmless if it has ended."""
        with suppress(ProcessLookupError):
            if sys.platform == "linux" and self._fd is not None:
                signal.pidfd_send_signal(self._fd, HAND_OVER)
            else:
                os.kill(self.pid, HAND_OVER)
        self.close()

    async def may_go(self, listen: str, loads: Collection[asyncio.Task[None]]) -> None:
        """Wait until what is to be loaded before this process takes over is, or `PATIENCE` is over.
        One that drains is not waited for: it serves nobody meanwhile.

        Raises CannotListenError where yet another controller has come to listen there meanwhile.
        """
        if loads and not self.drains:
            _, late = await asyncio.wait(loads, timeout=PATIENCE)
            if late:
                extra = {"models": len(late), "seconds": PATIENCE}
                logger.warning("taking over though models are still to be loaded", extra=extra)
        for pid in _listeners(listen):
            if pid != self.pid:
                raise CannotListenError(
                    f"cannot take {listen} over: process {pid} has done so meanwhile; start one "
                    "successor at a time"
                )

    def close(self) -> None:
        """Forget it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


async def find(listen: str) -> Predecessor | None:
    """The controller that listens there; None where nobody does.

    Raises CannotListenError where somebody does who is none, or cannot hand over.
    """
    pids = _listeners(listen)
    try:
        found = Predecessor(pids[0]) if pids else None
    except OSError as error:
        raise CannotListenError(f"cannot take {listen} over: {error}") from error
    if found is not None:
        status = await _ask(listen)
        if status is None:
            found.close()
            raise CannotListenError(
                f"cannot take {listen} over: process {found.pid} listens there, and is no "
                "controller that was started with --takeover; stop it first, or choose another "
                "--listen"
            )
        found.drains = status != SERVING
    return found


def _listeners(listen: str) -> list[int]:
    """The processes that listen there. Raises CannotListenError where that cannot be known."""
    try:
        if listen.startswith("unix:"):
            return _on_path(listen.removeprefix("unix:"))
        return _on(listen)
    except OSError as error:
        raise CannotListenError(f"cannot take {listen} over: {error}") from error


async def _ask(listen: str) -> int | None:
    """The health of its taking over; None: it has no such thing."""
    async with grpc.aio.insecure_channel(listen, options=channel_options(listen)) as channel:
        try:
            request = HealthCheckRequest(service=TAKEOVER)
            response = await HealthStub(channel).Check(request, timeout=_ASK_TIMEOUT)
        except grpc.aio.AioRpcError:
            return None
    return int(response.status)


def _on_path(path: str) -> list[int]:
    """The process that listens on a Unix socket, as the kernel noted it."""
    if not Path(path).is_socket():
        return []
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ASK_TIMEOUT)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return []
        if sys.platform == "darwin":
            return [probe.getsockopt(0, _LOCAL_PEERPID)]
        size = struct.calcsize("3i")
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return [int(struct.unpack("3i", credentials)[0])]


def _on(listen: str) -> list[int]:
    """The processes that listen on a TCP port, among those of this user. Linux."""
    host, _, port = listen.rpartition(":")
    if port == "0":
        return []  # a free one
    known = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    addresses = {_plain(str(entry[4][0])) for entry in known}
    found: dict[int, None] = {}
    for connection in psutil.net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN or connection.pid is None:
            continue
        at = cast("tuple[str, int]", connection.laddr)
        if at[1] == int(port) and _plain(at[0]) in addresses:
            found[connection.pid] = None
    return list(found)


def _plain(ip: str) -> str:
    """gRPC listens on IPv4 through a socket of IPv6, on all addresses too."""
    return "0.0.0.0" if ip == "::" else ip.removeprefix("::ffff:")
