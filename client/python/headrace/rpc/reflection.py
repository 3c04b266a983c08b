"""Server reflection, by which tools find services and messages by themselves.

Never imported by the SDK: it needs grpc_reflection.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection

_HEALTH = "grpc.health.v1.Health"


def enable_reflection(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Have a server describe these services, its health and reflection itself."""
    pool: Any = _Pool()  # It has what is called of one.
    names = (*services, _HEALTH, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, pool=pool)


class _Pool:
    """The descriptors of this process, methods included: asked for one by name, as ghz and grpcurl
    do, Protobuf's own pool does not find its file."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """Raises KeyError."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file
