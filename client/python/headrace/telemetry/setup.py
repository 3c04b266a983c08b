"""Set-up of a process's telemetry: once, at its start.

Trace ids exist in any case, so that log lines can be tied together; spans are recorded, and the
exporters imported, only if an OTLP endpoint is configured in the environment.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Literal, TypeAlias

from opentelemetry import trace

from headrace.telemetry.logs import BufferedHandler, JsonFormatter, TextFormatter

logger = logging.getLogger(__name__)

Service: TypeAlias = Literal["headrace-controller", "headrace-runner", "headrace-cli"]
LogFormat: TypeAlias = Literal["json", "text", "auto"]

_OWN_LOGGERS = ("headrace", "headrace_server", "headrace_runner")


class Telemetry:
    """What `configure` set up, to be shut down at the process's end."""

    def __init__(self, handler: BufferedHandler, exports: Sequence[Callable[[], object]]) -> None:
        self._handler = handler
        self._exports = exports

    def shutdown(self, timeout: float = 3.0) -> None:
        """Export and write what is left, for `timeout` seconds at most, and stop.

        Blocks: call it when the event loop has ended, or from a thread.
        """
        if self._exports:
            # A collector that does not answer must not hold up the exit.
            ending = threading.Thread(target=self._end_exports, daemon=True)
            ending.start()
            ending.join(timeout)
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()

    def _end_exports(self) -> None:
        for shutdown in self._exports:
            shutdown()


def configure(
    service: Service,
    *,
    instance_id: str,
    log_format: LogFormat = "auto",
    level: str = "INFO",
) -> Telemetry:
    """Set up logging on stderr, trace ids, and exports if the environment asks for them.

    `auto` logs text to a terminal and JSON elsewhere. `level` is for Headrace's own loggers; other
    libraries log warnings and errors.
    """
    handler = BufferedHandler()
    text = log_format == "text" or (log_format == "auto" and os.isatty(2))
    handler.setFormatter(TextFormatter() if text else JsonFormatter(service))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    set_level(level)
    logging.captureWarnings(True)

    signals = exported_signals(os.environ)
    exports = _start_exports(signals, service, instance_id) if signals else ()
    if "traces" not in signals or not exports:
        _only_trace_ids()
    return Telemetry(handler, exports)


def set_level(level: str) -> None:
    """The least that Headrace's own loggers log from now on, such as "INFO"."""
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(level)


def exported_signals(env: Mapping[str, str]) -> frozenset[str]:
    """Give which of traces, metrics and logs are to be exported, by OpenTelemetry's variables."""
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return frozenset()
    return frozenset(
        signal
        for signal in ("traces", "metrics", "logs")
        if env.get(f"OTEL_{signal.upper()}_EXPORTER") != "none"
        and (
            env.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT")
            or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        )
    )


def _start_exports(
    signals: frozenset[str], service: Service, instance_id: str
) -> Sequence[Callable[[], object]]:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    if protocol != "grpc":
        logger.warning(
            "nothing is exported: OTEL_EXPORTER_OTLP_PROTOCOL is %r and only 'grpc' is spoken here",
            protocol,
        )
        return ()
    try:
        from headrace.telemetry import export
    except ImportError as error:
        logger.warning(
            "nothing is exported: %s; install opentelemetry-sdk and "
            "opentelemetry-exporter-otlp-proto-grpc",
            error,
        )
        return ()
    return export.start(
        signals,
        {
            "service.name": service,
            "service.instance.id": instance_id,
            "service.version": _version(),
            "process.pid": os.getpid(),
        },
    )


def _only_trace_ids() -> None:
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
    except ImportError:
        return  # the bare client: callers bring their own provider, or have no trace
    # Spans that are not sampled have ids and record nothing. The empty resource spares the search
    # for resource detectors among all installed packages.
    provider = TracerProvider(
        sampler=ALWAYS_OFF, resource=Resource.get_empty(), shutdown_on_exit=False
    )
    trace.set_tracer_provider(provider)


def _version() -> str:
    try:
        return metadata.version("headrace")
    except metadata.PackageNotFoundError:
        return "unknown"
