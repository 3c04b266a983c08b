"""Handlers that keep a request's own bytes beside the message and answer with bytes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from headrace.rpc.service import validate

M = TypeVar("M", bound=Message)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True, slots=True)
class Raw(Generic[M]):
    """A request: decoded, and as it came."""

    message: M
    data: bytes


Unary: TypeAlias = Callable[[Raw[M], Context], Awaitable[bytes]]
Stream: TypeAlias = Callable[[Raw[M], Context], Awaitable[None]]


def unary(kind: type[M], behaviour: Unary[M]) -> Handler:
    """A handler that answers with bytes."""

    async def checked(request: Raw[M], context: Context) -> bytes:
        validate(request.message)
        return await behaviour(request, context)

    return grpc.unary_unary_rpc_method_handler(checked, _decoder(kind), None)


def stream(kind: type[M], behaviour: Stream[M]) -> Handler:
    """A handler that writes its answers as bytes to the context."""

    async def checked(request: Raw[M], context: Context) -> None:
        validate(request.message)
        await behaviour(request, context)

    return grpc.unary_stream_rpc_method_handler(checked, _decoder(kind), None)


def add_to(server: grpc.aio.Server, service: str, handlers: dict[str, Handler]) -> None:
    """Register a service's handlers, by method."""
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def time_remaining(context: Context) -> float | None:
    """Seconds to the client's deadline; None if it set none, which the type of gRPC leaves out."""
    remaining: float | None = context.time_remaining()
    return remaining


def seconds(message: Duration) -> float:
    """A duration in seconds; a negative one, which means for good, is infinite."""
    value = message.seconds + message.nanos * 1e-9
    return value if value >= 0 else float("inf")


def _decoder(kind: type[M]) -> Callable[[bytes], Raw[M]]:
    return lambda data: Raw(kind.FromString(data), data)
