"""Ties each call to a trace id that the caller can read, with or without a tracer.

Where the program has a tracer its client span decides; where it has none, a fresh id is made and
sent, so that the logs of the services can still be searched for this call.
"""

from __future__ import annotations

import secrets
from collections import namedtuple
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import grpc

from headrace._handshake import explained
from headrace.errors import HeadraceError, from_rpc_error

_HEADER = "traceparent"


class TraceSlot:
    """Receives the trace id of the one call that is begun inside `with slot:`."""

    __slots__ = ("_token", "trace_id")

    def __init__(self) -> None:
        self.trace_id = ""

    def __enter__(self) -> TraceSlot:
        self._token = _slot.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _slot.reset(self._token)


_slot: ContextVar[TraceSlot | None] = ContextVar("headrace_trace_slot", default=None)


def failure(error: grpc.RpcError, trace: TraceSlot) -> HeadraceError:
    """The exception of a failed call, with the trace id as a note."""
    failed = explained(from_rpc_error(error))
    failed.add_note(f"trace {trace.trace_id}")
    return failed


_Entries = Sequence[tuple[str, str]]


def _traced(metadata: Any, more: _Entries) -> list[tuple[str, str | bytes]]:
    """The call's metadata with `more`, and with a trace context; its id goes to the slot."""
    entries = [*(metadata or ()), *more]
    parent = next((value for key, value in entries if key == _HEADER), None)
    if parent is None:
        # Flag 01: the services may record the trace; whether they do is their setting.
        parent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
        entries.append((_HEADER, parent))
    if slot := _slot.get():
        slot.trace_id = str(parent).split("-")[1]
    return entries


_Details = namedtuple(  # gRPC reads these attributes and no types
    "_Details", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")
)


class SyncTraceIds(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """The innermost interceptor of a blocking channel."""

    def __init__(self, more: _Entries = ()) -> None:
        """`more`: further metadata of every call."""
        self._more = more

    def intercept_unary_unary(
        self, continuation: Any, client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        """Notes the trace id of one call."""
        return continuation(self._details(client_call_details), request)

    def intercept_unary_stream(
        self, continuation: Any, client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        """Notes the trace id of one stream."""
        return continuation(self._details(client_call_details), request)

    def _details(self, details: grpc.ClientCallDetails) -> Any:
        return _Details(
            details.method,
            details.timeout,
            _traced(details.metadata, self._more),
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )


class _AioTraceIds:
    def __init__(self, more: _Entries) -> None:
        self._more = more

    def _details(self, details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        return grpc.aio.ClientCallDetails(
            details.method,
            details.timeout,
            grpc.aio.Metadata(*_traced(details.metadata, self._more)),
            details.credentials,
            details.wait_for_ready,
        )


class _AioUnaryUnary(_AioTraceIds, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._details(client_call_details), request)


class _AioUnaryStream(_AioTraceIds, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self._details(client_call_details), request)


def aio_trace_ids(more: _Entries = ()) -> list[grpc.aio.ClientInterceptor]:
    """The innermost interceptors of a `grpc.aio` channel; gRPC wants one for each kind of call.

    `more`: further metadata of every call.
    """
    return [_AioUnaryUnary(more), _AioUnaryStream(more)]
