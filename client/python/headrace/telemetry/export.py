"""Export over OTLP/gRPC. Imported only if an endpoint is configured: it brings the whole SDK."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final

from opentelemetry import metrics, trace
from opentelemetry._logs import SeverityNumber
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider, LogRecordProcessor
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from headrace.telemetry import names, propagation, tracing
from headrace.telemetry.logs import extra_fields, is_relayed, line_time


def start(
    signals: Collection[str],
    attributes: Mapping[str, str | int],
    local: SpanExporter | None = None,
) -> list[Callable[[], object]]:
    """Start the export of these signals ("traces", "metrics", "logs").

    Where there are traces, `local` gets their spans as well.

    Endpoint, headers, TLS, sampler and intervals are read from OpenTelemetry's own environment
    variables. Gives the functions that flush and end it; each may block for some seconds.
    """
    resource = Resource.create(dict(attributes))
    ends: list[Callable[[], object]] = []
    if "traces" in signals:
        ends.append(tracing.start(resource, BatchSpanProcessor(OTLPSpanExporter()), local))
    if "metrics" in signals:
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        metrics.set_meter_provider(meters)
        ends.append(meters.shutdown)
    if "logs" in signals:
        processor = BatchLogRecordProcessor(OTLPLogExporter())
        handler = _OtlpHandler(processor, resource)
        root = logging.getLogger()
        root.addHandler(handler)
        ends.append(partial(root.removeHandler, handler))
        ends.append(processor.shutdown)
    return ends


_SEVERITIES: Final = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
    (logging.DEBUG, SeverityNumber.DEBUG),
)

_OTHERS: Final = 64
"""Processes whose lines are relayed at once, at most."""


class _OtlpHandler(logging.Handler):
    """Hands log records to OpenTelemetry, each under the service that it comes from."""

    def __init__(self, processor: LogRecordProcessor, resource: Resource) -> None:
        super().__init__()
        self._processor = processor
        self._own = self._provider(resource)
        self._others: OrderedDict[tuple[str, str], LoggerProvider] = OrderedDict()
        # What the export itself logs would be exported again, and so on.
        self.addFilter(lambda record: not record.name.startswith(("opentelemetry", "grpc")))

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record."""
        try:
            fields = extra_fields(record)
            relayed = is_relayed(fields)
            provider = self._provider_of(fields) if relayed else self._own
            context = _context_of(fields) if relayed else None
            at = line_time(record)
            if relayed:
                fields.pop("timestamp", None)
            if "exception" in fields:
                fields[names.EXCEPTION_STACKTRACE] = fields.pop("exception")
            provider.get_logger(record.name).emit(
                timestamp=at,
                context=context,
                severity_number=next(
                    (number for level, number in _SEVERITIES if record.levelno >= level),
                    SeverityNumber.TRACE,
                ),
                severity_text=record.levelname,
                body=record.getMessage(),
                attributes={
                    key: value if isinstance(value, (str, bool, int, float)) else repr(value)
                    for key, value in fields.items()
                },
                exception=record.exc_info[1] if record.exc_info else None,
            )
        except Exception:  # noqa: BLE001 - a log call must not break its caller
            return

    def _provider_of(self, fields: dict[str, Any]) -> LoggerProvider:
        """Of the process that a line is from; its name and its instance are no attributes then."""
        key = str(fields.pop("service")), str(fields.get("runner_id", ""))
        provider = self._others.get(key)
        if provider is None:
            if len(self._others) == _OTHERS:
                self._others.popitem(last=False)
            service, instance = key
            resource = Resource({"service.name": service, "service.instance.id": instance})
            provider = self._others[key] = self._provider(resource)
        return provider

    def _provider(self, resource: Resource) -> LoggerProvider:
        provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_log_record_processor(self._processor)
        return provider


def _context_of(fields: dict[str, Any]) -> Context:
    """The trace that a line of another process names; it is no attribute then."""
    trace_id, span_id = fields.pop("trace_id", ""), fields.pop("span_id", "")
    context = propagation.extract([("traceparent", f"00-{trace_id}-{span_id}-00")])
    # Not an empty one, which would stand for the current one here.
    return context or trace.set_span_in_context(trace.INVALID_SPAN)
