"""Interceptors that give each call a span, its context and its duration.

A call's span is current in its handler for as long as the handler runs, async generators
included: handlers start child spans without passing a context, and end them explicitly where a
`yield` is in between. Health checks, looks at runners and reflection are not traced.
"""

from __future__ import annotations

import asyncio
import time
from collections import namedtuple
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

import grpc
from grpc import StatusCode
from opentelemetry import context as otel_context
from opentelemetry import metrics, trace
from opentelemetry.context import Context as TraceContext
from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.types import AttributeValue

from headrace._handlers import Behaviour, Context, Handler, WrappingInterceptor, with_behaviour
from headrace.telemetry import names, propagation

_SCOPE: Final = "headrace.rpc"
_UNTRACED: Final = (
    "/grpc.health.",
    "/grpc.reflection.",
    "/headrace.v1.ModelService/ListRunners",
    "/headrace.v1.RunnerService/GetRunner",
)
"""What watchers ask again and again."""
_SERVER_ERRORS: Final = frozenset(
    {
        StatusCode.UNKNOWN,
        StatusCode.DEADLINE_EXCEEDED,
        StatusCode.UNIMPLEMENTED,
        StatusCode.INTERNAL,
        StatusCode.UNAVAILABLE,
        StatusCode.DATA_LOSS,
    }
)
"""Codes that are a server's fault; the others are its right answer to a wrong call."""


class _Rpc:
    """The span and the clock of one call. `end` is called once."""

    __slots__ = ("_duration", "_kind", "_method", "_start", "context", "span")

    def __init__(
        self,
        tracer: trace.Tracer,
        duration: metrics.Histogram,
        kind: SpanKind,
        method: str,
        parent: TraceContext | None,
        attributes: dict[str, AttributeValue],
    ) -> None:
        self._duration = duration
        self._kind = kind
        self._method = method.removeprefix("/")
        self._start = time.perf_counter()
        attributes = {
            names.RPC_SYSTEM_NAME: "grpc",
            names.RPC_METHOD: self._method,
            **attributes,
        }
        self.span: Span = tracer.start_span(self._method, parent, kind, attributes)
        self.context = trace.set_span_in_context(self.span, parent)

    def end(self, code: StatusCode) -> None:
        seconds = time.perf_counter() - self._start
        failed = code in _SERVER_ERRORS if self._kind is SpanKind.SERVER else code != StatusCode.OK
        outcome = {names.RPC_STATUS_CODE: code.name}
        if failed:
            outcome[names.ERROR_TYPE] = code.name
        if self.span.is_recording():
            self.span.set_attributes(outcome)
            if failed:
                self.span.set_status(trace.StatusCode.ERROR, code.name)
        self.span.end()
        self._duration.record(
            seconds,
            {names.RPC_SYSTEM_NAME: "grpc", names.RPC_METHOD: self._method, **outcome},
            self.context,
        )


class TelemetryServerInterceptor(WrappingInterceptor):
    """A server span for each call, child of the caller's. The outermost interceptor."""

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._duration = names.RPC_SERVER_DURATION.create(meter)
        super().__init__()

    def _wrap(self, method: str, handler: Handler, inner: Behaviour) -> Handler:
        if method.startswith(_UNTRACED):
            return handler

        async def behaviour(request: Any, context: Context) -> Any:
            parent = propagation.extract(context.invocation_metadata() or ())
            rpc = _Rpc(self._tracer, self._duration, SpanKind.SERVER, method, parent, {})
            if rpc.span.is_recording():
                rpc.span.set_attributes(_peer(context.peer()))
            # gRPC runs a call in a task of its own, and behaviours are coroutines: what is
            # attached here is seen by the handler and by nobody else.
            token = otel_context.attach(rpc.context)
            code = StatusCode.UNKNOWN
            try:
                response = await inner(request, context)
                code = _code_set_by(context) or StatusCode.OK
                return response
            except asyncio.CancelledError:
                late = context.time_remaining() == 0
                code = StatusCode.DEADLINE_EXCEEDED if late else StatusCode.CANCELLED
                raise
            except grpc.aio.AbortError as aborted:
                code = _code_set_by(context) or StatusCode.UNKNOWN
                # The call's state refers to this exception, whose frames refer to the call: a
                # circle that would keep the request until the garbage collector gets to it.
                del request
                aborted.__context__ = aborted.__traceback__ = None
                raise
            finally:
                otel_context.detach(token)
                rpc.end(code)

        return with_behaviour(handler, behaviour, handler.request_deserializer)


class _ClientTelemetry:
    """What the client interceptors share."""

    def __init__(
        self,
        target: str,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._duration = names.RPC_CLIENT_DURATION.create(meter)
        self._server = _server(target)

    def _start(self, method: str) -> _Rpc | None:
        if method.startswith(_UNTRACED):
            return None
        return _Rpc(self._tracer, self._duration, SpanKind.CLIENT, method, None, self._server)


class _AioClientTelemetry(_ClientTelemetry):
    async def _intercept(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Any],
        details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        method: str | bytes = details.method  # bytes, whatever its type says
        rpc = self._start(method.decode() if isinstance(method, bytes) else method)
        if rpc is None:
            return await continuation(details, request)
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        for key, value in propagation.headers(rpc.context).items():
            metadata[key] = value
        try:
            call = await continuation(
                grpc.aio.ClientCallDetails(
                    details.method,
                    details.timeout,
                    metadata,
                    details.credentials,
                    details.wait_for_ready,
                ),
                request,
            )
        except BaseException:
            rpc.end(StatusCode.CANCELLED)
            raise
        call.add_done_callback(lambda call: rpc.end(_code_of(call)))
        return call


class _AioUnaryUnary(_AioClientTelemetry, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await self._intercept(continuation, client_call_details, request)


class _AioUnaryStream(_AioClientTelemetry, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await self._intercept(continuation, client_call_details, request)


def aio_client_interceptors(
    target: str,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
) -> list[grpc.aio.ClientInterceptor]:
    """Give the interceptors of a `grpc.aio` channel to `target`.

    gRPC files an interceptor under one kind of call only, so there is one for each kind.
    """
    return [
        _AioUnaryUnary(target, tracer_provider, meter_provider),
        _AioUnaryStream(target, tracer_provider, meter_provider),
    ]


_Details = namedtuple(  # gRPC reads the attributes and asks for no type
    "_Details", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")
)


class SyncClientInterceptor(
    _ClientTelemetry, grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor
):
    """A client span for each call of a blocking channel to `target`."""

    def _intercept(self, continuation: Any, details: grpc.ClientCallDetails, request: Any) -> Any:
        rpc = self._start(details.method)
        if rpc is None:
            return continuation(details, request)
        added = propagation.headers(rpc.context)
        kept = [item for item in details.metadata or () if item[0] not in added]
        try:
            call = continuation(
                _Details(
                    details.method,
                    details.timeout,
                    (*kept, *added.items()),
                    details.credentials,
                    details.wait_for_ready,
                    details.compression,
                ),
                request,
            )
        except BaseException:
            rpc.end(StatusCode.CANCELLED)
            raise
        call.add_done_callback(lambda call: rpc.end(call.code() or StatusCode.OK))
        return call

    def intercept_unary_unary(
        self, continuation: Any, client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        """Trace one call."""
        return self._intercept(continuation, client_call_details, request)

    def intercept_unary_stream(
        self, continuation: Any, client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        """Trace one stream, to its end."""
        return self._intercept(continuation, client_call_details, request)


def _code_of(call: grpc.aio.Call) -> StatusCode:
    """Give the code of a call that is done, from which its coroutine has nothing to wait for."""
    reading = call.code()
    try:
        reading.send(None)
    except StopIteration as answer:
        code: StatusCode = answer.value
        return code
    reading.close()
    return StatusCode.UNKNOWN


def _code_set_by(context: Context) -> StatusCode | None:
    """Give the code that the handler set; none if it set none, whatever the type says."""
    code: StatusCode | None = context.code()
    return code


def _server(target: str) -> dict[str, AttributeValue]:
    if target.startswith("unix:"):
        return {names.SERVER_ADDRESS: target.removeprefix("unix:").removeprefix("//")}
    address, _, port = target.rpartition("/")[2].rpartition(":")
    if not port.isdecimal():
        return {names.SERVER_ADDRESS: target}
    return {names.SERVER_ADDRESS: address.strip("[]"), names.SERVER_PORT: int(port)}


def _peer(peer: str) -> dict[str, AttributeValue]:
    """Read gRPC's peer: `ipv4:1.2.3.4:5`, `ipv6:%5B::1%5D:5` or `unix:`."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return {}
    address, _, port = rest.rpartition(":")
    found: dict[str, AttributeValue] = {names.NETWORK_PEER_ADDRESS: address.strip("[]")}
    if port.isdecimal():
        found[names.NETWORK_PEER_PORT] = int(port)
    return found
