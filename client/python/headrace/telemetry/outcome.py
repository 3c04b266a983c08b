"""How a span says that it came to nothing, by OpenTelemetry's rules for errors."""

from __future__ import annotations

import asyncio
from typing import Final

from opentelemetry.trace import Span, StatusCode

from headrace.errors import HeadraceError
from headrace.telemetry import names

CANCELLED: Final = "cancelled"
"""An end that is nobody's fault: a kind of error, but not a status."""


def kind_of(error: BaseException) -> str:
    """Give the `error.type` of an exception: the reason of a typed one, else its code or class."""
    if isinstance(error, HeadraceError):
        return error.reason or error.code.name
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return CANCELLED
    return type(error).__name__


def mark(span: Span, kind: str, message: str = "") -> None:
    """Have a span say that it ended in an error of this kind."""
    if not span.is_recording():
        return
    span.set_attribute(names.ERROR_TYPE, kind)
    if kind != CANCELLED:
        span.set_status(StatusCode.ERROR, message or kind)


def add_death(span: Span, cause: str, message: str, last_words: str, at: int | None = None) -> None:
    """Have a span tell of a runner's death, with what it printed last.

    `at`: when, in nanoseconds since 1970; now if not given.
    """
    if not span.is_recording():
        return
    span.set_attribute(names.HEADRACE_RUNNER_CAUSE_OF_DEATH, cause)
    attributes = {names.HEADRACE_RUNNER_CAUSE_OF_DEATH: cause, names.EXCEPTION_MESSAGE: message}
    if last_words:
        attributes[names.HEADRACE_RUNNER_LAST_WORDS] = last_words
    span.add_event(names.EVENT_RUNNER_DIED, attributes, at)
