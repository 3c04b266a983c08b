"""Typed errors, for clients and services alike.

A service raises one of these and the client catches the same class: they travel as a canonical
status code with `google.rpc` details. `_exceptions` has the tree of all classes.
"""

from headrace._error import FieldViolation, HeadraceError
from headrace._exceptions import (
    Cancelled,
    CircuitOpen,
    ContextLengthExceeded,
    DataLoss,
    DeadlineExceeded,
    DeadlineUnreachable,
    Draining,
    InsufficientDisk,
    InsufficientMemory,
    InternalError,
    InvalidRequest,
    LoadFailed,
    ModelCorrupt,
    ModelInUse,
    ModelMismatch,
    ModelNotFound,
    ModelTooLarge,
    NotImplementedYet,
    PermissionDenied,
    QueueFull,
    RateLimited,
    RpcFailed,
    RunnerCrashed,
    SourceUnavailable,
    Unauthenticated,
    Unavailable,
    UnsupportedCapability,
    UnsupportedModel,
    UnsupportedParameter,
)
from headrace._status import from_rpc_error, from_status, to_status, trailing_metadata

__all__ = [
    "Cancelled",
    "CircuitOpen",
    "ContextLengthExceeded",
    "DataLoss",
    "DeadlineExceeded",
    "DeadlineUnreachable",
    "Draining",
    "FieldViolation",
    "HeadraceError",
    "InsufficientDisk",
    "InsufficientMemory",
    "InternalError",
    "InvalidRequest",
    "LoadFailed",
    "ModelCorrupt",
    "ModelInUse",
    "ModelMismatch",
    "ModelNotFound",
    "ModelTooLarge",
    "NotImplementedYet",
    "PermissionDenied",
    "QueueFull",
    "RateLimited",
    "RpcFailed",
    "RunnerCrashed",
    "SourceUnavailable",
    "Unauthenticated",
    "Unavailable",
    "UnsupportedCapability",
    "UnsupportedModel",
    "UnsupportedParameter",
    "from_rpc_error",
    "from_status",
    "to_status",
    "trailing_metadata",
]

# Tracebacks show the name that callers import.
for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
