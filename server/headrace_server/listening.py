"""The address a controller listens on: bound, taken over from a predecessor, let go, cleaned up.

With a successor nothing is refused. New connections go to the successor as soon as it is there: a
Unix socket's path is renamed onto its socket, and on TCP both listen (SO_REUSEPORT) until the
predecessor has stopped to. Old connections are renewed every `CONNECTION_AGE` in any case: gRPC
tells the client to make another and serves what is under way, so that after that time no new call
can come on one of them.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import psutil

from headrace.host.sockets import remove_stale
from headrace.rpc.options import ConnectionLimits, server_options
from headrace.rpc.protection import OPEN, Protection

CONNECTION_AGE = 10.0
"""Seconds."""
SETTLED = CONNECTION_AGE * 1.1 + 1.0
"""Seconds after which no connection from before can bring a new call: gRPC spreads the age by a
tenth."""


class CannotListenError(Exception):
    """The address to listen on is taken, or cannot be used."""


class Address:
    """One address of one server: `bind`, start the server, `publish`, perhaps `let_go`, `close`."""

    def __init__(
        self, listen: str, *, takeover: bool, limits: ConnectionLimits | None = None
    ) -> None:
        """`listen`: as in the settings. `takeover`: whether it may be another's before, and
        another's after. `limits`: None for none. Raises CannotListenError where the system has no
        way to do that."""
        self._listen = listen
        self._takeover = takeover
        self._limits = limits
        self._port = 0
        self._path: Path | None = None
        self._inode: tuple[int, int] | None = None
        if listen.startswith("unix:"):
            self._path = Path(listen.removeprefix("unix:"))
        elif takeover and sys.platform != "linux":
            raise CannotListenError(
                f"--takeover of {listen}: works with TCP on Linux alone; listen on unix:/path"
            )

    def options(self) -> list[tuple[str, Any]]:
        """Of the server that is to be bound."""
        options = dict(server_options())
        if self._limits is not None:
            options |= self._limits.options()
        if self._takeover:
            age = CONNECTION_AGE if self._limits is None else min(CONNECTION_AGE, self._limits.age)
            options["grpc.max_connection_age_ms"] = round(age * 1000)
            options["grpc.so_reuseport"] = 1
        return list(options.items())

    def bind(self, server: grpc.aio.Server, protection: Protection = OPEN) -> str:
        """Gives the address, with the port that was bound. Raises CannotListenError."""
        with _objections(self._listen):
            if self._path is None:
                self._port = protection.add_port(server, self._listen)
                return f"{self._listen.rpartition(':')[0]}:{self._port}"
            if not self._takeover:
                remove_stale(self._path)
            # Under a name of its own first. gRPC removes the name that it has bound when it stops,
            # and the path may be a successor's by then.
            protection.add_port(server, f"unix:{self._own_name}")
            return self._listen

    def publish(self) -> None:
        """Make a Unix socket known by its path, now that its server serves.

        Raises CannotListenError.
        """
        if self._path is None:
            return
        status = self._own_name.stat()
        with _objections(self._listen):
            if self._takeover:
                self._own_name.replace(self._path)
            else:
                self._path.hardlink_to(self._own_name)  # fails where another was quicker
                self._own_name.unlink()
        self._inode = (status.st_dev, status.st_ino)

    def let_go(self) -> None:
        """Take no new connection. Those that are there stay."""
        if self._path is not None:
            return  # New ones find the successor's socket.
        for connection in psutil.Process().net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == self._port:
                # gRPC can only stop as a whole. It notices, and closes the socket.
                with socket.socket(fileno=os.dup(connection.fd)) as listener:
                    listener.shutdown(socket.SHUT_RD)

    def close(self) -> None:
        """Remove the socket's file, unless it is a successor's by now."""
        if self._path is None:
            return
        self._own_name.unlink(missing_ok=True)
        try:
            status = self._path.lstat()
        except FileNotFoundError:
            return
        if (status.st_dev, status.st_ino) == self._inode:
            self._path.unlink(missing_ok=True)

    @property
    def _own_name(self) -> Path:
        assert self._path is not None
        # Short: the path of a socket has 107 bytes at most.
        return self._path.with_name(f".{os.getpid():x}")


@contextmanager
def _objections(listen: str) -> Iterator[None]:
    """Turns what binding raises into words for the user."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise CannotListenError(
            f"cannot listen on {listen}: {error}; does a controller listen there already? "
            "Choose another address with --listen, or start both with --takeover"
        ) from error
