"""The process's tracer: what is sampled, what is recorded, and who gets the spans."""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from headrace.telemetry.branches import WholeBranches
from headrace.telemetry.sampling import RecordAll


def start(
    resource: Resource, exported: SpanProcessor | None, local: SpanExporter | None
) -> Callable[[], object]:
    """Set the tracer provider of this process; gives the function that ends it.

    `exported` gets the spans that OpenTelemetry's sampler takes (OTEL_TRACES_SAMPLER, by the
    parent's choice), `local` all. With neither, spans have ids and record nothing.
    """
    provider = TracerProvider(
        # Without `exported` nothing is sampled, and others are told so; else as the environment
        # says.
        sampler=None if exported is not None else ALWAYS_OFF,
        resource=resource,
        shutdown_on_exit=False,
    )
    if local is not None:
        # Before the first tracer is made: tracers keep the sampler that they find.
        provider.sampler = RecordAll(provider.sampler)
    if exported is not None or local is not None:
        provider.add_span_processor(WholeBranches(exported, local))
    trace.set_tracer_provider(provider)
    return provider.shutdown
