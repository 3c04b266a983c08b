"""The interceptors of a service: errors to rich statuses, requests checked by their rules.

Handlers raise `HeadraceError` and see valid requests only. Never imported by the SDK: it needs
protovalidate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import protovalidate
from google.protobuf.message import DecodeError, Message
from opentelemetry import trace

from headrace._handlers import (
    Behaviour,
    Context,
    Handler,
    WrappingInterceptor,
    with_behaviour,
)
from headrace.errors import (
    FieldViolation,
    HeadraceError,
    InternalError,
    InvalidRequest,
    to_status,
    trailing_metadata,
)
from headrace.rpc.access import Access, AccessInterceptor
from headrace.telemetry import names
from headrace.telemetry.rpc import TelemetryServerInterceptor

logger = logging.getLogger(__name__)

_OF_GRPC: Final = "grpc._cython.cygrpc"
_SHOWN_FIELDS: Final = 3
"""Broken fields that a record names."""
_LIST_ALL_BYTES: Final = 65_536
"""A larger request is checked up to its first broken rule, so that checking it takes no longer
than reading it did, however many rules it breaks."""


def server_interceptors(access: Access | None = None) -> list[grpc.aio.ServerInterceptor]:
    """Give the interceptors of a service in their order: telemetry, errors, access, validation.

    `access`: who may call what; None: everybody everything.
    """
    logging.getLogger(_OF_GRPC).addFilter(_without_headers)
    guards = [] if access is None else [AccessInterceptor(access)]
    return [TelemetryServerInterceptor(), ErrorInterceptor(), *guards, ValidationInterceptor()]


def _without_headers(record: logging.LogRecord) -> bool:
    """gRPC tells of a header that is no text with all its bytes, and a token may be among them."""
    return "Invalid encoding on" not in record.getMessage()


class ErrorInterceptor(WrappingInterceptor):
    """Ends a call whose handler raised.

    A `HeadraceError` becomes its status with details, and its reason is recorded. Any other
    exception is a bug: it is logged with its traceback, and the client gets INTERNAL with the trace
    id. Cancellation and gRPC's own exceptions (an abort, a client that is gone) pass.
    """

    def _wrap(self, method: str, handler: Handler, inner: Behaviour) -> Handler:
        async def behaviour(request: Any, context: Context) -> Any:
            try:
                return await inner(request, context)
            except HeadraceError as error:
                _record(method, error)
                await abort(context, error)
            except grpc.aio.BaseError:
                raise
            except Exception:  # the last place where a handler's bug can be told apart
                logger.exception("%s failed", method)
                await abort(context, InternalError(_trace_id()))

        return with_behaviour(handler, behaviour, handler.request_deserializer)


async def abort(context: Context, error: HeadraceError) -> None:
    """End the call with the error. Always raises, as `context.abort` does."""
    status = to_status(error)
    await context.abort(error.code, status.message, trailing_metadata(error, status))


def _record(method: str, error: HeadraceError) -> None:
    """Has the call's span and a log line say why it failed.

    The message stays out of both: it may quote the request. Of a broken rule, the field is told.
    """
    if not error.reason:
        return
    told = dict(error.metadata)
    if "field" not in told and error.violations:
        fields = dict.fromkeys(violation.field for violation in error.violations)
        told["field"] = " ".join([*fields][:_SHOWN_FIELDS])
    details = ", ".join(f"{key}={value}" for key, value in sorted(told.items()) if value)
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attribute(names.HEADRACE_ERROR_REASON, error.reason)
        if details:
            span.set_attribute(names.HEADRACE_ERROR_DETAILS, details)
    extra = {"method": method.removeprefix("/"), "reason": error.reason, "details": details}
    logger.info("call failed", extra=extra)


def _trace_id() -> str:
    span = trace.get_current_span().get_span_context()
    return trace.format_trace_id(span.trace_id) if span.is_valid else ""


@dataclass(frozen=True, slots=True)
class _Undecodable:
    """Stands for a request whose bytes are not the message they should be."""

    why: str


class ValidationInterceptor(WrappingInterceptor):
    """Refuses a request that cannot be decoded or breaks a rule of the contract.

    Raises `InvalidRequest` with one violation for each broken rule, into `ErrorInterceptor`.
    Requests that stay bytes are the handler's own concern.
    """

    def _wrap(self, method: str, handler: Handler, inner: Behaviour) -> Handler:
        if handler.request_deserializer is None:
            return handler

        async def behaviour(request: Any, context: Context) -> Any:
            if isinstance(request, _Undecodable):
                raise InvalidRequest(
                    f"the request cannot be decoded: {request.why}; "
                    "send the message that this method takes, with texts in UTF-8"
                )
            if isinstance(request, Message):
                validate(request)
            return await inner(request, context)

        return with_behaviour(handler, behaviour, _caught(handler.request_deserializer))


def validate(request: Message) -> None:
    """Check a message by its `buf.validate` rules.

    Raises:
        InvalidRequest: a rule is broken; all of them are named if the message is below 64 KiB.
    """
    broken = protovalidate.collect_violations(request, fail_fast=True)
    if not broken:
        return
    if request.ByteSize() <= _LIST_ALL_BYTES:
        broken = protovalidate.collect_violations(request)
    raise InvalidRequest(violations=[_field_violation(violation) for violation in broken])


def _caught(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Carry a decoding error into the handler; gRPC would answer INTERNAL and call nobody."""

    def deserialize(data: bytes) -> Any:
        try:
            return deserializer(data)
        except (DecodeError, ValueError) as error:
            return _Undecodable(str(error))

    return deserialize


def _field_violation(violation: protovalidate.Violation) -> FieldViolation:
    proto = violation.proto
    path = ""
    for element in proto.field.elements if proto.field else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript:
            path += f"[{element.subscript.value!r}]"
    return FieldViolation(path, f"key {proto.message}" if proto.for_key else proto.message)
