"""The record of a start: one span for each part of it, in the trace of the load that it is for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span

from headrace.telemetry import names
from headrace.telemetry.outcome import kind_of, mark
from headrace.telemetry.propagation import context_from_env

_tracer = trace.get_tracer("headrace.runner")


class Start:
    """A runner's start, from the process's first line until it serves.

    The parts are children of the load that the environment names, each by itself: what was done
    before a process was killed is known. Without one they have a span of this process over them.
    """

    def __init__(self, imports: tuple[int, int] | None = None) -> None:
        """`imports`: when they began and ended, in nanoseconds since 1970; None: they were done
        before there was a load."""
        self._own: Span | None = None
        self._context = context_from_env()
        began = imports[0] if imports else None
        if not trace.get_current_span(self._context).get_span_context().is_valid:
            self._own = _tracer.start_span(names.SPAN_LOAD, Context(), start_time=began)
            self._context = trace.set_span_in_context(self._own, Context())
        if imports:
            span = _tracer.start_span(names.SPAN_LOAD_IMPORTS, self._context, start_time=began)
            span.end(imports[1])
        self._warming: Span | None = None

    @contextmanager
    def lines(self) -> Iterator[None]:
        """What is logged within this belongs to the load."""
        token = otel_context.attach(self._context)
        try:
            yield
        finally:
            otel_context.detach(token)

    @contextmanager
    def part(self, name: str) -> Iterator[Span]:
        """One part, in whatever thread; it ends with the error that leaves it."""
        span = _tracer.start_span(name, self._context)
        token = otel_context.attach(trace.set_span_in_context(span, self._context))
        try:
            yield span
        except BaseException as error:
            mark(span, kind_of(error), str(error))
            raise
        finally:
            otel_context.detach(token)
            span.end()

    def warms_up(self) -> None:
        """The last part begins, which ends with the whole."""
        self._warming = _tracer.start_span(names.SPAN_LOAD_WARM_UP, self._context)

    def end(self, error: BaseException | None = None) -> None:
        """It serves, or never will for this error."""
        for span in (self._warming, self._own):
            if span is not None:
                if error is not None:
                    mark(span, kind_of(error), str(error))
                span.end()
        self._warming = self._own = None
