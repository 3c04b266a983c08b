"""The record of one load: its span, whose lines are part of it, and how it ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext

from headrace.telemetry import names
from headrace.telemetry.outcome import CANCELLED, add_death, mark
from headrace_server.runners.diagnosis import Death

_tracer = trace.get_tracer("headrace.controller")


class Load:
    """A start of a runner, from the order until it serves or has failed.

    It is part of the trace of the request that it is for, and may outlive it. Others that wait for
    it refer to it.
    """

    def __init__(self, runner: str, model: str, digest: str, began: float, cause: Context) -> None:
        """`began`: on the scheduler's clock. `cause`: of the request that it is for; without a span
        in it, the load begins a trace."""
        self.began = began
        self._span = _tracer.start_span(
            names.SPAN_LOAD,
            cause,
            attributes={
                names.GEN_AI_REQUEST_MODEL: model,
                names.HEADRACE_MODEL_DIGEST: digest,
                names.HEADRACE_RUNNER_ID: runner,
            },
        )
        self.context = trace.set_span_in_context(self._span, Context())
        """With its span, for the process that is started."""
        self.error = ""
        """The kind of error that it has come to, if it has failed."""
        self._over = False

    @property
    def span(self) -> SpanContext:
        """For those who refer to it."""
        return self._span.get_span_context()

    def link(self) -> Link:
        """For the span of one who waits for it."""
        return Link(self.span)

    @contextmanager
    def lines(self) -> Iterator[None]:
        """What is logged of the runner within this belongs to the load, while there is one; else to
        no trace."""
        token = otel_context.attach(Context() if self._over else self.context)
        try:
            yield
        finally:
            otel_context.detach(token)

    def done(self, memory: int | None) -> None:
        """The runner serves. `memory`: the bytes that it is counted for, if it has said."""
        if memory is not None:
            self._span.set_attribute(names.HEADRACE_RUNNER_MEMORY, memory)
        self._end()

    def died(self, death: Death) -> None:
        """The process is gone. Nothing new of one that has served."""
        if not self._over and not death.expected:
            add_death(self._span, death.cause, death.message, death.detail)
        self.failed(CANCELLED if death.expected else death.cause, death.message)

    def failed(self, kind: str, message: str) -> None:
        """It has come to nothing, if it is not over yet."""
        if not self._over:
            self.error = kind
            mark(self._span, kind, message)
            self._end()

    def _end(self) -> None:
        self._over = True
        self._span.end()
