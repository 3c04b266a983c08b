"""`grpc.health.v1` for `grpc.aio`: Check, Watch and List over one table of statuses.

It knows no service but those it was told of, and its Watch streams end at `shutdown`, so that
they never hold up a server's stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN

_MOST_BYTES = 1024
"""Of a request: everybody may ask, and nobody has a name that long."""
_MOST_WATCHES = 1024


M = TypeVar("M", bound=Message)


def _small(kind: type[M]) -> Callable[[bytes], M]:
    """Decodes a request that is not too large. Raises ValueError."""

    def decode(data: bytes) -> M:
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES} bytes")
        return kind.FromString(data)

    return decode


class HealthServicer:
    """The health of a server's services. Belongs to one event loop; call it from there."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._ended = False
        self._watches = 0

    def set(self, service: str, status: int) -> None:
        """Set the status of a service; SERVICE_UNKNOWN forgets it. Ignored after `shutdown`."""
        if self._ended:
            return
        if status == SERVICE_UNKNOWN:
            self._statuses.pop(service, None)
        else:
            self._statuses[service] = status
        self._wake()

    def shutdown(self) -> None:
        """Report NOT_SERVING for every service from now on, and end all Watch streams."""
        self._ended = True
        self._statuses = dict.fromkeys(self._statuses, NOT_SERVING)
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        answer = HealthCheckResponse.SerializeToString
        handlers = {
            "Check": unary(self.Check, _small(HealthCheckRequest), answer),
            "Watch": stream(self.Watch, _small(HealthCheckRequest), answer),
            "List": unary(
                self.List, _small(HealthListRequest), HealthListResponse.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("grpc.health.v1.Health", handlers),)
        )

    async def Check(
        self, request: HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> HealthCheckResponse:
        """Answer the status of a service; NOT_FOUND if it is not known."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"no service named {request.service!r} is here"
            )
        return HealthCheckResponse(status=status)

    async def Watch(
        self, request: HealthCheckRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[HealthCheckResponse]:
        """Stream the status of a service, now and at every change that the reader keeps up with."""
        if self._watches >= _MOST_WATCHES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch the health")
        self._watches += 1
        try:
            async for status in self._followed(request.service):
                yield HealthCheckResponse(status=status)
        finally:
            self._watches -= 1

    async def _followed(self, service: str) -> AsyncIterator[int]:
        sent = None
        while True:
            changed = self._changed
            status = self._statuses.get(service, SERVICE_UNKNOWN)
            if status != sent:
                yield status
                sent = status
            elif self._ended:
                return
            else:
                await changed.wait()

    async def List(
        self, request: HealthListRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> HealthListResponse:
        """Answer the statuses of all services."""
        return HealthListResponse(
            statuses={
                service: HealthCheckResponse(status=status)
                for service, status in self._statuses.items()
            }
        )
