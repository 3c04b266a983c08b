"""Set-up of a process's telemetry: once, at its start.

Trace ids exist in any case, so that log lines can be tied together. Spans are recorded if somebody
takes them: an OTLP endpoint that the environment names, or a local store. The exporters are
imported for the former alone.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Literal, TypeAlias

from headrace.telemetry.logs import BufferedHandler, JsonFormatter, TextFormatter, bind_process

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

Service: TypeAlias = Literal["headrace-controller", "headrace-runner", "headrace-cli"]
LogFormat: TypeAlias = Literal["json", "text", "auto"]

_OWN_LOGGERS = ("headrace", "headrace_server", "headrace_runner")


class Telemetry:
    """What `configure` set up, to be shut down at the process's end."""

    def __init__(
        self, handlers: Sequence[logging.Handler], exports: Sequence[Callable[[], object]]
    ) -> None:
        self._handlers = handlers
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
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()

    def _end_exports(self) -> None:
        for shutdown in self._exports:
            shutdown()


def configure(
    service: Service,
    *,
    instance_id: str,
    log_format: LogFormat = "auto",
    level: str = "INFO",
    fields: Mapping[str, str] | None = None,
    export_logs: bool = True,
    resource: Mapping[str, str] | None = None,
    local: SpanExporter | None = None,
    local_logs: logging.Handler | None = None,
) -> Telemetry:
    """Set up logging on stderr, trace ids, and exports if the environment asks for them.

    `auto` logs text to a terminal and JSON elsewhere. `level` is for Headrace's own loggers; other
    libraries log warnings and errors. `fields` are on every line. `export_logs` is false where
    another process exports this one's lines. `resource` is what else there is to say of the process
    with all that it exports.

    `local` gets every span, sampled or not, and `local_logs` every record that is logged. Both are
    called by whoever ends the span or logs, and are shut down with the rest.
    """
    bind_process(**fields or {})
    handler = BufferedHandler()
    text = log_format == "text" or (log_format == "auto" and os.isatty(2))
    handler.setFormatter(TextFormatter() if text else JsonFormatter(service))
    root = logging.getLogger()
    handlers = [handler] if local_logs is None else [local_logs, handler]
    for each in handlers:
        root.addHandler(each)
    root.setLevel(logging.WARNING)
    set_level(level)
    logging.captureWarnings(True)
    # No line shows these, and finding them out costs each record a system call.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False

    signals = exported_signals(os.environ) - (set() if export_logs else {"logs"})
    attributes: dict[str, str | int] = {
        "service.name": service,
        "service.instance.id": instance_id,
        "service.version": _version(),
        "process.pid": os.getpid(),
        **(resource or {}),
    }
    exports = _start_exports(signals, attributes, local) if signals else []
    if "traces" not in signals or not exports:
        exports += _start_recording(attributes, local)
    return Telemetry(handlers, exports)


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
    signals: frozenset[str], attributes: Mapping[str, str | int], local: SpanExporter | None
) -> list[Callable[[], object]]:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    if protocol != "grpc":
        logger.warning(
            "nothing is exported: OTEL_EXPORTER_OTLP_PROTOCOL is %r and only 'grpc' is spoken here",
            protocol,
        )
        return []
    try:
        from headrace.telemetry import export
    except ImportError as error:
        logger.warning(
            "nothing is exported: %s; install opentelemetry-sdk and "
            "opentelemetry-exporter-otlp-proto-grpc",
            error,
        )
        return []
    return export.start(signals, attributes, local)


def _start_recording(
    attributes: Mapping[str, str | int], local: SpanExporter | None
) -> list[Callable[[], object]]:
    """Have trace ids, and spans for `local` if there is one."""
    try:
        from opentelemetry.sdk.resources import Resource

        from headrace.telemetry import tracing
    except ImportError:
        return []  # the bare client: callers bring their own provider, or have no trace
    # Not Resource.create(), which searches all installed packages for resource detectors.
    return [tracing.start(Resource(attributes), None, local)]


def _version() -> str:
    try:
        return metadata.version("headrace")
    except metadata.PackageNotFoundError:
        return "unknown"
