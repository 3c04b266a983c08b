"""The exceptions of Headrace, one class for each `ErrorReason` of the contract.

Their constructors write the messages and the metadata that the contract documents; `_status` puts
them on the wire.

    HeadraceError
    ├── InvalidRequest            INVALID_ARGUMENT
    ├── ContextLengthExceeded     INVALID_ARGUMENT
    ├── UnsupportedParameter      INVALID_ARGUMENT
    ├── UnsupportedCapability     FAILED_PRECONDITION
    ├── UnsupportedModel          FAILED_PRECONDITION
    ├── ModelNotFound             NOT_FOUND
    ├── ModelCorrupt              DATA_LOSS
    ├── ModelMismatch             FAILED_PRECONDITION
    ├── ModelInUse                FAILED_PRECONDITION
    ├── Draining                  UNAVAILABLE
    ├── QueueFull                 RESOURCE_EXHAUSTED
    ├── DeadlineUnreachable       DEADLINE_EXCEEDED
    ├── InsufficientMemory        RESOURCE_EXHAUSTED
    ├── InsufficientDisk          RESOURCE_EXHAUSTED
    ├── ModelTooLarge             FAILED_PRECONDITION
    ├── LoadFailed                FAILED_PRECONDITION or UNAVAILABLE, by its cause
    ├── RunnerCrashed             UNAVAILABLE before the first event, ABORTED after it
    ├── CircuitOpen               UNAVAILABLE
    ├── SourceUnavailable         UNAVAILABLE
    ├── Unauthenticated           UNAUTHENTICATED
    ├── PermissionDenied          PERMISSION_DENIED
    ├── RateLimited               RESOURCE_EXHAUSTED
    ├── NotImplementedYet         UNIMPLEMENTED
    ├── InternalError             INTERNAL
    │                             seen by clients only, without a reason:
    ├── Cancelled                 CANCELLED
    ├── DeadlineExceeded          DEADLINE_EXCEEDED
    ├── Unavailable               UNAVAILABLE: the transport failed
    ├── DataLoss                  DATA_LOSS: what arrived has not the checksum that it should have
    └── RpcFailed                 any other
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from grpc import StatusCode

from headrace._error import FieldViolation, HeadraceError

TRANSIENT_CAUSES = frozenset({"OUT_OF_MEMORY", "SIGNAL", "STALLED"})
"""Causes of a failed load under which a later try may succeed."""


class InvalidRequest(HeadraceError):
    """One or more fields break a rule of the contract, or the request cannot be decoded."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    def __init__(self, message: str = "", *, violations: Iterable[FieldViolation] = ()) -> None:
        violations = tuple(violations)
        if not message:
            shown = "; ".join(f"{v.field}: {v.description}" for v in violations[:3])
            rest = f"; and {len(violations) - 3} more" if len(violations) > 3 else ""
            message = f"invalid request: {shown}{rest}"
        super().__init__(message, violations=violations)


class ContextLengthExceeded(HeadraceError):
    """The prompt, or an input, has more tokens than the model's context."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "CONTEXT_LENGTH_EXCEEDED"

    def __init__(
        self,
        *,
        limit: int,
        actual: int,
        field: str | None = None,
        remedy: str = "shorten it, or have it cut with `truncate`",
    ) -> None:
        """`field`: an input of several, with its `remedy`; None: the prompt."""
        has = f"{actual} tokens and the context holds {limit}"
        cut = f"has {has}; {remedy}"
        super().__init__(
            f"the prompt has {has}; shorten the prompt" if field is None else f"{field} {cut}",
            metadata={"limit": limit, "actual": actual},
            violations=[] if field is None else [FieldViolation(field, cut)],
        )


class UnsupportedParameter(HeadraceError):
    """An option that this model or runner cannot honour."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "UNSUPPORTED_PARAMETER"

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(
            f"{field}: {message}",
            metadata={"field": field},
            violations=[FieldViolation(field, message)],
        )


class UnsupportedCapability(HeadraceError):
    """The model cannot do this at all."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "UNSUPPORTED_CAPABILITY"

    def __init__(self, message: str, *, model: str = "", capability: str = "") -> None:
        super().__init__(message, metadata={"model": model, "capability": capability})


class UnsupportedModel(HeadraceError):
    """The architecture is not supported."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "UNSUPPORTED_MODEL"

    def __init__(self, message: str, *, architecture: str = "") -> None:
        super().__init__(message, metadata={"architecture": architecture})


class ModelNotFound(HeadraceError):
    """No model of this name is in the store."""

    code = StatusCode.NOT_FOUND
    reason = "MODEL_NOT_FOUND"

    def __init__(self, name: str, *, nearest: Iterable[str] = (), hint: str = "") -> None:
        nearest = tuple(nearest)
        message = f"no model named {name!r} is in the store"
        if nearest:
            message += f"; did you mean {' or '.join(map(repr, nearest))}?"
        elif hint:
            message += f"; {hint}"
        super().__init__(message, metadata={"model": name, "nearest": ",".join(nearest)})


class ModelCorrupt(HeadraceError):
    """A file of the model is damaged, truncated or missing."""

    code = StatusCode.DATA_LOSS
    reason = "MODEL_CORRUPT"

    def __init__(self, message: str = "", *, file: str) -> None:
        super().__init__(
            message or f"the model's file {file!r} is damaged; remove the model and get it again",
            metadata={"file": file},
        )


class ModelMismatch(HeadraceError):
    """The request reached a runner of another model."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "MODEL_MISMATCH"

    def __init__(self, *, wanted: str, serving: str) -> None:
        super().__init__(
            f"this runner serves {serving!r}, not {wanted!r}",
            metadata={"wanted": wanted, "serving": serving},
        )


class ModelInUse(HeadraceError):
    """The model is busy and the call would have disturbed its requests; or adapters need it."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "MODEL_IN_USE"

    def __init__(self, message: str, *, model: str) -> None:
        super().__init__(message, metadata={"model": model})


class Draining(HeadraceError):
    """The service is draining and takes no new streams."""

    code = StatusCode.UNAVAILABLE
    reason = "DRAINING"

    def __init__(
        self, retry_after: float, message: str = "shutting down; no new streams are taken"
    ) -> None:
        super().__init__(message, retry_after=retry_after)


class QueueFull(HeadraceError):
    """A queue is full; the request was refused at once."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"

    def __init__(self, retry_after: float, *, queue: str, limit: int) -> None:
        super().__init__(
            f"the queue of the {queue} is full ({limit} requests); try again later",
            metadata={"queue": queue, "limit": limit},
            retry_after=retry_after,
        )


class DeadlineUnreachable(HeadraceError):
    """The request could not have started before its deadline and was refused without starting."""

    code = StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_UNREACHABLE"

    def __init__(self, estimate: float) -> None:
        when = f"its first token takes {estimate:.1f} s more" if estimate else "it may yet wait"
        super().__init__(
            f"the deadline comes before the request could start: {when}; give it more time",
            metadata={"estimate": f"{estimate:.3f}"},
        )


class InsufficientMemory(HeadraceError):
    """Memory is short for now; it may be free later."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "INSUFFICIENT_MEMORY"

    def __init__(
        self,
        message: str = "",
        *,
        needs: int | None = None,
        free: int | None = None,
        retry_after: float = 1.0,
    ) -> None:
        super().__init__(
            message or f"{needs} bytes of memory are needed and {free} are free; try again later",
            metadata={"needs": needs, "free": free},
            retry_after=retry_after,
        )


class InsufficientDisk(HeadraceError):
    """The store's disk has no room for the model."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "INSUFFICIENT_DISK"

    def __init__(self, message: str = "", *, needs: int, free: int) -> None:
        super().__init__(
            message
            or f"{needs} bytes of disk are needed and {free} are free; remove models, or set"
            " HEADRACE_HOME to a larger disk",
            metadata={"needs": needs, "free": free},
        )


class ModelTooLarge(HeadraceError):
    """The model can never fit into the memory budget."""

    code = StatusCode.FAILED_PRECONDITION
    reason = "MODEL_TOO_LARGE"

    def __init__(self, message: str = "", *, needs: int, has: int) -> None:
        super().__init__(
            message
            or f"the model needs {needs} bytes of memory and the budget is {has}; "
            "choose a smaller model or raise the budget",
            metadata={"needs": needs, "has": has},
        )


class LoadFailed(HeadraceError):
    """The model could not be loaded."""

    reason = "LOAD_FAILED"

    def __init__(self, message: str, *, cause: str) -> None:
        super().__init__(message, metadata={"cause": cause})
        transient = cause in TRANSIENT_CAUSES
        self.code = StatusCode.UNAVAILABLE if transient else StatusCode.FAILED_PRECONDITION


class RunnerCrashed(HeadraceError):
    """The runner died under the request and the stream could not be carried on.

    `tokens_sent` is the number of output tokens the client had been sent, `bytes_sent` that of
    images' bytes; `None` for both says that the stream had not begun, so that a new try repeats
    nothing.
    """

    reason = "RUNNER_CRASHED"

    def __init__(
        self,
        message: str = "",
        *,
        cause: str,
        tokens_sent: int | None = None,
        bytes_sent: int | None = None,
    ) -> None:
        super().__init__(
            message or f"the model's runner died ({cause})",
            metadata={"cause": cause, "tokens_sent": tokens_sent, "bytes_sent": bytes_sent},
        )
        begun = tokens_sent is not None or bytes_sent is not None
        self.code = StatusCode.ABORTED if begun else StatusCode.UNAVAILABLE


class CircuitOpen(HeadraceError):
    """The model's runners crashed too often; none is started for a while."""

    code = StatusCode.UNAVAILABLE
    reason = "CIRCUIT_OPEN"

    def __init__(self, retry_after: float, *, cause: str = "") -> None:
        super().__init__(
            f"the model's runners crashed too often, last by {cause or 'an unknown cause'}; "
            f"none is started for {retry_after:.0f} s",
            metadata={"cause": cause},
            retry_after=retry_after,
        )


class SourceUnavailable(HeadraceError):
    """A model's source could not be reached or read.

    `retry_after`: None where waiting does not help.
    """

    code = StatusCode.UNAVAILABLE
    reason = "SOURCE_UNAVAILABLE"

    def __init__(self, message: str, *, source: str, retry_after: float | None = 5.0) -> None:
        super().__init__(message, metadata={"source": source}, retry_after=retry_after)


class Unauthenticated(HeadraceError):
    """No credentials, or none that are valid."""

    code = StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(HeadraceError):
    """The credentials do not cover this method."""

    code = StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"

    def __init__(self, message: str, *, scope: str) -> None:
        super().__init__(message, metadata={"scope": scope})


class RateLimited(HeadraceError):
    """The token may not have more at this time; `retry_after` says when."""

    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"

    def __init__(self, message: str, *, limit: str, retry_after: float) -> None:
        super().__init__(message, metadata={"limit": limit}, retry_after=retry_after)


class NotImplementedYet(HeadraceError):
    """The method is part of the contract, and this version does not serve it yet."""

    code = StatusCode.UNIMPLEMENTED
    reason = "NOT_IMPLEMENTED"

    def __init__(self, message: str, *, method: str = "") -> None:
        super().__init__(message, metadata={"method": method})


class InternalError(HeadraceError):
    """A bug in Headrace; the message says no more than where to look."""

    code = StatusCode.INTERNAL
    reason = "INTERNAL"

    def __init__(self, trace_id: str = "") -> None:
        where = f", trace {trace_id}" if trace_id else ""
        super().__init__(
            f"internal error; see the server's log{where}", metadata={"trace_id": trace_id}
        )


class Cancelled(HeadraceError):
    """The call was cancelled."""

    code = StatusCode.CANCELLED


class DeadlineExceeded(HeadraceError):
    """The call's deadline passed."""

    code = StatusCode.DEADLINE_EXCEEDED


class Unavailable(HeadraceError):
    """The server cannot be reached, or the connection broke."""

    code = StatusCode.UNAVAILABLE


class DataLoss(HeadraceError):
    """What arrived is not what was sent: its checksum is another."""

    code = StatusCode.DATA_LOSS


class RpcFailed(HeadraceError):
    """Any other failure; `code` says which."""


BY_REASON: Mapping[str, type[HeadraceError]] = MappingProxyType(
    {kind.reason: kind for kind in HeadraceError.__subclasses__() if kind.reason}
)
"""The class of each reason of the contract."""
