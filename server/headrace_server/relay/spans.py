"""The spans of a relayed call: one for each attempt, and what the call's own says at its end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import grpc
from opentelemetry import trace
from opentelemetry.trace import Link, SpanContext, SpanKind

from headrace.errors import HeadraceError
from headrace.telemetry import names, propagation
from headrace.telemetry.outcome import CANCELLED, add_death, kind_of, mark
from headrace_server.relay.record import Record
from headrace_server.scheduling.ticket import Ticket, Wanted

_tracer = trace.get_tracer("headrace.controller")


class Attempt:
    """The span of one attempt at a call, from the first message to its runner to the last from it.

    It ends with the context, or where `broke` said that it did, by the exception that leaves it.
    """

    def __init__(self, method: str, ticket: Ticket, record: Record, before: SpanContext) -> None:
        """`before`: the attempt before this, if there was one."""
        life = ticket.life
        name = method.removeprefix("/")
        self._span = _tracer.start_span(
            name,
            kind=SpanKind.CLIENT,
            attributes={
                names.RPC_SYSTEM_NAME: "grpc",
                names.RPC_METHOD: name,
                names.GEN_AI_REQUEST_MODEL: life.wanted.name,
                names.HEADRACE_RUNNER_ID: life.id,
                names.HEADRACE_MODEL_DIGEST: life.wanted.digest,
                names.HEADRACE_ATTEMPT: record.moves + 1,
            },
            links=[Link(before)] if before.is_valid else (),
        )
        self._ended_at: int | None = None

    @property
    def span(self) -> SpanContext:
        """For the attempt after this."""
        return self._span.get_span_context()

    def headers(self) -> dict[str, str]:
        """What carries it on to the runner."""
        return propagation.headers(trace.set_span_in_context(self._span))

    def broke(self, code: grpc.StatusCode) -> None:
        """The runner is lost now, which showed by this code; why may take a moment to be known."""
        self._ended_at = time.time_ns()
        self._fail(code.name, code.name)

    def died(self, cause: str, message: str, last_words: str) -> None:
        """Why the runner was lost."""
        add_death(self._span, cause, message, last_words, self._ended_at)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._ended_at is None:  # Else what happened since is no part of it.
            if error is None:
                self._span.set_attribute(names.RPC_STATUS_CODE, grpc.StatusCode.OK.name)
            else:
                self._fail(*_code_and_kind_of(error))
        self._span.end(self._ended_at)

    def _fail(self, code: str, kind: str) -> None:
        self._span.set_attribute(names.RPC_STATUS_CODE, code)
        mark(self._span, kind)


def note_end(wanted: Wanted, record: Record) -> None:
    """Has the call's own span say how it went, whatever way it ends."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attribute(names.GEN_AI_REQUEST_MODEL, wanted.name)
        span.set_attribute(names.HEADRACE_RESUMED, record.moves)
        span.set_attributes(record.attributes)


def _code_and_kind_of(error: BaseException) -> tuple[str, str]:
    """By gRPC's names; the kind of a bug is its exception's."""
    if isinstance(error, HeadraceError):
        return error.code.name, error.code.name
    if kind_of(error) == CANCELLED:
        return grpc.StatusCode.CANCELLED.name, grpc.StatusCode.CANCELLED.name
    return grpc.StatusCode.UNKNOWN.name, type(error).__name__
