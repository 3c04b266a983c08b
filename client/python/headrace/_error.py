"""`HeadraceError`, the base of every error of Headrace: what travels, and nothing of the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from grpc import StatusCode


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request that breaks a rule."""

    field: str
    """Path in the request, such as `sampling.temperature` or `stop.strings[2]`."""

    description: str
    """The rule, in words."""


class HeadraceError(Exception):
    """Base of every error of Headrace."""

    code: StatusCode = StatusCode.UNKNOWN
    """The canonical status code."""

    reason: str = ""
    """Name of the `ErrorReason` without its prefix; empty if the server gave none."""

    message: str
    """What happened and what to do about it, for people."""

    metadata: Mapping[str, str]
    """The keys that the `ErrorReason` documents."""

    retry_after: float | None
    """Seconds after which a new try makes sense; `None` if the server did not say."""

    violations: tuple[FieldViolation, ...]
    """The fields at fault."""

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, object] | None = None,
        retry_after: float | None = None,
        violations: Iterable[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        known = {key: str(value) for key, value in (metadata or {}).items() if value is not None}
        self.metadata = MappingProxyType(known)
        self.retry_after = retry_after
        self.violations = tuple(violations)

    def __reduce__(self) -> tuple[Callable[..., HeadraceError], tuple[object, ...]]:
        return rebuild, (
            type(self),
            self.message,
            self.code,
            self.reason,
            dict(self.metadata),
            self.retry_after,
            self.violations,
        )


def rebuild(
    kind: type[HeadraceError],
    message: str,
    code: StatusCode,
    reason: str,
    metadata: Mapping[str, str],
    retry_after: float | None,
    violations: Iterable[FieldViolation],
) -> HeadraceError:
    """Make an error from what travelled, past the constructor of its class."""
    error = kind.__new__(kind)
    HeadraceError.__init__(
        error, message, metadata=metadata, retry_after=retry_after, violations=violations
    )
    error.code = code
    error.reason = reason
    return error
