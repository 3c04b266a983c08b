"""Errors to and from the wire: `google.rpc.Status` in the trailing metadata of a call.

The sizes are bounded here, since gRPC drops a call's whole status when its headers exceed 8 KiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

from headrace import _exceptions as exceptions
from headrace._error import FieldViolation, HeadraceError, rebuild

_M = TypeVar("_M", bound=Message)

DOMAIN: Final = "headrace.dev"
DETAILS_KEY: Final = "grpc-status-details-bin"
PUSHBACK_KEY: Final = "grpc-retry-pushback-ms"

# The message travels twice: percent-encoded (up to three times its size) and inside the details
# (base64, 4/3). These limits keep both together under 8 KiB and the details under 4 KiB.
_MESSAGE_BYTES: Final = 1024
_VALUE_BYTES: Final = 256
_STATUS_BYTES: Final = 3072

_BROKEN_OFF: Final = "RST_STREAM"
_LONGEST_CHANNEL_RETRY: Final = 2.0
"""Seconds a channel may wait on its own for a retry; a longer wait is the caller's to decide."""

_BY_CODE: Mapping[grpc.StatusCode, type[HeadraceError]] = MappingProxyType(
    {
        grpc.StatusCode.CANCELLED: exceptions.Cancelled,
        grpc.StatusCode.INVALID_ARGUMENT: exceptions.InvalidRequest,
        grpc.StatusCode.DEADLINE_EXCEEDED: exceptions.DeadlineExceeded,
        grpc.StatusCode.UNAVAILABLE: exceptions.Unavailable,
        grpc.StatusCode.DATA_LOSS: exceptions.DataLoss,
        grpc.StatusCode.UNIMPLEMENTED: exceptions.NotImplementedYet,
        grpc.StatusCode.UNAUTHENTICATED: exceptions.Unauthenticated,
        grpc.StatusCode.PERMISSION_DENIED: exceptions.PermissionDenied,
        grpc.StatusCode.INTERNAL: exceptions.InternalError,
    }
)


def to_status(error: HeadraceError) -> Status:
    """Give the error as `google.rpc.Status`, at most 3 KiB.

    Long texts are cut and the last of too many violations left out. The call must end with
    `status.message` as its details string: clients compare the two.
    """
    status = Status(code=error.code.value[0], message=_fit(error.message, _MESSAGE_BYTES))
    if error.reason:
        metadata = {key: _fit(value, _VALUE_BYTES) for key, value in error.metadata.items()}
        _add(status, ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.retry_after is not None:
        seconds, fraction = divmod(max(0.0, error.retry_after), 1)
        delay = Duration(seconds=int(seconds), nanos=int(fraction * 1e9))
        _add(status, RetryInfo(retry_delay=delay))
    if isinstance(error, exceptions.InsufficientMemory):
        quota = QuotaFailure.Violation(subject="memory", description=_fit(error.message, 256))
        _add(status, QuotaFailure(violations=[quota]))
    if error.violations:
        room = _STATUS_BYTES - status.ByteSize() - 64
        _add(status, _bad_request(error.violations, room))
    return status


def trailing_metadata(error: HeadraceError, status: Status) -> tuple[tuple[str, str | bytes], ...]:
    """Give the trailing metadata of a call that fails with this error.

    A channel repeats an UNAVAILABLE call by itself only where the error says when.
    """
    details: tuple[str, bytes] = (DETAILS_KEY, status.SerializeToString())
    if error.retry_after is None:
        final = error.code is grpc.StatusCode.UNAVAILABLE
        return (details, (PUSHBACK_KEY, "-1")) if final else (details,)
    short = error.retry_after <= _LONGEST_CHANNEL_RETRY
    pushback = str(round(error.retry_after * 1000)) if short else "-1"
    return (details, (PUSHBACK_KEY, pushback))


def from_rpc_error(error: grpc.RpcError) -> HeadraceError:
    """Give the exception of a failed call: by its reason if the server gave one, else by its code.

    Takes the errors of `grpc` and `grpc.aio` alike, and of servers that are not Headrace.
    """
    code = error.code()
    return _from_details(_details_of(error), code, error.details() or code.name)


def from_status(status: Status) -> HeadraceError:
    """Give the exception that `to_status` made the status of."""
    code = next((c for c in grpc.StatusCode if c.value[0] == status.code), grpc.StatusCode.UNKNOWN)
    return _from_details(status, code, code.name)


def _from_details(status: Status, code: grpc.StatusCode, otherwise: str) -> HeadraceError:
    reason = ""
    metadata: dict[str, str] = {}
    retry_after: float | None = None
    violations: list[FieldViolation] = []
    for detail in status.details:
        if (info := _unpack(detail, ErrorInfo)) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif retry := _unpack(detail, RetryInfo):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        elif bad := _unpack(detail, BadRequest):
            violations = [FieldViolation(v.field, v.description) for v in bad.field_violations]
    if not reason and code is grpc.StatusCode.INTERNAL and _BROKEN_OFF in otherwise:
        # Headrace's own INTERNAL has a reason. This is how gRPC names a stream that a proxy breaks
        # off because the server behind it is gone.
        code = grpc.StatusCode.UNAVAILABLE
    kind = exceptions.BY_REASON.get(reason) or _BY_CODE.get(code, exceptions.RpcFailed)
    message = status.message or otherwise
    return rebuild(kind, message, code, reason, metadata, retry_after, violations)


def _details_of(error: grpc.RpcError) -> Status:
    metadata: Any = error.trailing_metadata()  # pairs, in a type of its own in grpc and grpc.aio
    for key, value in metadata or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                break
    return Status()


def _unpack(detail: AnyMessage, kind: type[_M]) -> _M | None:
    message = kind()
    try:
        return message if detail.Unpack(message) else None
    except DecodeError:
        return None


def _add(status: Status, detail: Message) -> None:
    status.details.add().Pack(detail)


def _bad_request(violations: Iterable[FieldViolation], room: int) -> BadRequest:
    bad = BadRequest()
    for violation in violations:
        bad.field_violations.add(
            field=_fit(violation.field, _VALUE_BYTES),
            description=_fit(violation.description, _VALUE_BYTES),
        )
        if bad.ByteSize() > room:
            del bad.field_violations[-1]
            break
    return bad


def _fit(text: str, limit: int) -> str:
    """Cut the text to `limit` bytes of UTF-8, and replace what UTF-8 cannot carry."""
    data = text[:limit].encode("utf-8", "replace")
    if len(data) <= limit and len(text) <= limit:
        return data.decode()
    return data[: limit - 3].decode("utf-8", "ignore") + "…"
