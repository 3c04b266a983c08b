"""Export over OTLP/gRPC. Imported only if an endpoint is configured: it brings the whole SDK."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Final

from opentelemetry import metrics
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from headrace.telemetry import tracing
from headrace.telemetry.logs import extra_fields


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
        loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
        loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
        handler = _OtlpHandler(loggers)
        root = logging.getLogger()
        root.addHandler(handler)
        ends.append(partial(root.removeHandler, handler))
        ends.append(loggers.shutdown)
    return ends


_SEVERITIES: Final = (
    (logging.CRITICAL, SeverityNumber.FATAL),
    (logging.ERROR, SeverityNumber.ERROR),
    (logging.WARNING, SeverityNumber.WARN),
    (logging.INFO, SeverityNumber.INFO),
    (logging.DEBUG, SeverityNumber.DEBUG),
)


class _OtlpHandler(logging.Handler):
    """Hands log records to OpenTelemetry, which adds the current span's ids."""

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider
        # What the export itself logs would be exported again, and so on.
        self.addFilter(lambda record: not record.name.startswith(("opentelemetry", "grpc")))

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one record."""
        try:
            self._provider.get_logger(record.name).emit(
                timestamp=int(record.created * 1e9),
                severity_number=next(
                    (number for level, number in _SEVERITIES if record.levelno >= level),
                    SeverityNumber.TRACE,
                ),
                severity_text=record.levelname,
                body=record.getMessage(),
                attributes={
                    key: value if isinstance(value, (str, bool, int, float)) else repr(value)
                    for key, value in extra_fields(record).items()
                },
                exception=record.exc_info[1] if record.exc_info else None,
            )
        except Exception:  # noqa: BLE001 - a log call must not break its caller
            return
