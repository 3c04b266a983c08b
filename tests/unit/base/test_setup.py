"""Set-up of a process's telemetry, in processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider

from headrace.telemetry.propagation import context_from_env, inject_env
from headrace.telemetry.setup import exported_signals

PROCESS = """
import logging, sys
from headrace.telemetry.setup import configure
telemetry = configure("headrace-runner", instance_id="r1", log_format="json")
from opentelemetry import metrics, trace
from headrace.telemetry.propagation import context_from_env
logger = logging.getLogger("headrace_runner.app")
with trace.get_tracer("t").start_as_current_span("load", context_from_env()):
    logger.info("in the span", extra={"model": "m"})
metrics.get_meter("t").create_counter("headrace.test").add(1)
logging.getLogger("some.library").info("not ours")
telemetry.shutdown()
print("grpc exporter" if "headrace.telemetry.export" in sys.modules else "no exporter")
"""


def run(code: str = PROCESS, **env: str) -> tuple[list[dict[str, Any]], str]:
    """Run a process; gives its log lines and its output."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stderr.splitlines()], done.stdout.strip()


def test_without_an_endpoint_nothing_is_loaded_but_ids_exist() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    env: dict[str, str] = {"TRACESTATE": "stale=1"}
    with provider.get_tracer("t").start_as_current_span("spawn") as span:
        inject_env(env)
    lines, output = run(**env)
    assert output == "no exporter"
    assert [line["message"] for line in lines] == ["in the span"]
    context = span.get_span_context()
    assert lines[0]["trace_id"] == trace.format_trace_id(context.trace_id)
    assert lines[0]["span_id"] != trace.format_span_id(context.span_id)
    assert "TRACESTATE" not in env


def test_a_process_without_a_parent_begins_a_trace() -> None:
    lines, _ = run()
    assert int(lines[0]["trace_id"], 16) > 0


def test_another_protocol_is_named_and_not_exported() -> None:
    lines, output = run(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
    )
    assert output == "no exporter"
    assert "OTEL_EXPORTER_OTLP_PROTOCOL" in lines[0]["message"]
    assert lines[1]["trace_id"]


LOCAL = """
import logging
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
class Local(SpanExporter):
    def export(self, spans):
        for span in spans:
            sampled = span.context.trace_flags.sampled
            print(span.name, span.resource.attributes["service.name"], sampled)
        return SpanExportResult.SUCCESS
    def shutdown(self):
        print("local ended")
class Lines(logging.Handler):
    def emit(self, record):
        print("line", record.getMessage())
    def close(self):
        super().close()
        print("lines ended")
"""
WITH_LOCAL = LOCAL + PROCESS.replace(
    'log_format="json"', 'log_format="json", local=Local(), local_logs=Lines()'
)


def test_a_local_store_gets_what_is_not_exported() -> None:
    """And no exporter is imported for it."""
    lines, output = run(WITH_LOCAL, TRACEPARENT=f"00-{'a' * 32}-{'b' * 16}-01")
    assert output.splitlines()[:5] == [
        "line in the span",
        "load headrace-runner False",
        "local ended",
        "lines ended",
        "no exporter",
    ]
    assert lines[0]["trace_id"] == "a" * 32


def test_a_local_store_takes_nothing_from_a_collector() -> None:
    with collecting() as (collector, endpoint):
        _, output = run(WITH_LOCAL, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert "load headrace-runner True" in output
    assert any(isinstance(r, trace_service_pb2.ExportTraceServiceRequest) for r in collector.got)


def test_the_local_store_is_served_where_the_export_is_not() -> None:
    _, output = run(
        WITH_LOCAL,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:4318",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
    )
    assert "load headrace-runner False" in output


class Collector(
    trace_service_pb2_grpc.TraceServiceServicer,
    metrics_service_pb2_grpc.MetricsServiceServicer,
    logs_service_pb2_grpc.LogsServiceServicer,
):
    """Takes all three signals; `Export` is told apart by its request."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def Export(self, request: Any, context: Any) -> Any:
        self.got.append(request)
        answers: dict[type, Any] = {
            trace_service_pb2.ExportTraceServiceRequest: (
                trace_service_pb2.ExportTraceServiceResponse
            ),
            metrics_service_pb2.ExportMetricsServiceRequest: (
                metrics_service_pb2.ExportMetricsServiceResponse
            ),
            logs_service_pb2.ExportLogsServiceRequest: logs_service_pb2.ExportLogsServiceResponse,
        }
        return answers[type(request)]()


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    """A collector and its endpoint."""
    collector = Collector()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    untyped: tuple[Any, ...] = (
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server,
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server,
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server,
    )
    for add in untyped:
        add(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_all_signals_reach_a_collector() -> None:
    with collecting() as (collector, endpoint):
        lines, output = run(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert output == "grpc exporter"
    got = {type(request).__name__: str(request) for request in collector.got}
    assert set(got) == {
        "ExportTraceServiceRequest",
        "ExportMetricsServiceRequest",
        "ExportLogsServiceRequest",
    }
    assert all('"headrace-runner"' in text and '"r1"' in text for text in got.values())
    (log,) = (
        record
        for request in collector.got
        if isinstance(request, logs_service_pb2.ExportLogsServiceRequest)
        for record in request.resource_logs[0].scope_logs[0].log_records
    )
    assert log.body.string_value == "in the span"
    assert log.trace_id.hex() == lines[0]["trace_id"]
    assert {a.key: a.value.string_value for a in log.attributes} == {"model": "m"}


RELAYING = """
import logging
from headrace.telemetry.setup import configure
telemetry = configure("headrace-controller", instance_id="c1", log_format="json")
from opentelemetry import trace
logger = logging.getLogger("headrace_server.runners.output")
with trace.get_tracer("t").start_as_current_span("another"):
    line = {
        "service": "headrace-runner",
        "timestamp": "2001-01-01T00:00:00.250Z",
        "trace_id": "a" * 32,
        "span_id": "b" * 16,
        "runner_id": "r7",
        "exception": "Traceback",
    }
    logger.error("from the runner", extra=line)
    logger.error("outside a trace", extra={"service": "headrace-runner", "runner_id": "r7"})
logger.error("its own")
telemetry.shutdown()
"""


def test_a_line_of_a_runner_is_exported_as_the_runners() -> None:
    """By its controller, which has it to the last one; once, with its own time and trace."""
    with collecting() as (collector, endpoint):
        run(RELAYING, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    found = {}
    for request in collector.got:
        if isinstance(request, logs_service_pb2.ExportLogsServiceRequest):
            for source in request.resource_logs:
                attributes = {a.key: a.value.string_value for a in source.resource.attributes}
                for record in source.scope_logs[0].log_records:
                    found[record.body.string_value] = (attributes, record)
    assert {
        message: (attributes["service.name"], attributes["service.instance.id"])
        for message, (attributes, _) in found.items()
    } == {
        "from the runner": ("headrace-runner", "r7"),
        "outside a trace": ("headrace-runner", "r7"),
        "its own": ("headrace-controller", "c1"),
    }
    _, record = found["from the runner"]
    assert record.trace_id.hex() == "a" * 32
    assert record.span_id.hex() == "b" * 16
    assert record.time_unix_nano == 978_307_200_250_000_000
    told = {a.key: a.value.string_value for a in record.attributes}
    assert told == {"runner_id": "r7", "exception.stacktrace": "Traceback"}
    assert not found["outside a trace"][1].trace_id


def test_lines_that_another_exports_are_not_exported_here() -> None:
    code = PROCESS.replace('log_format="json"', 'log_format="json", export_logs=False')
    with collecting() as (collector, endpoint):
        lines, _ = run(code, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert lines[0]["message"] == "in the span"
    kinds = {type(request).__name__ for request in collector.got}
    assert kinds == {"ExportTraceServiceRequest", "ExportMetricsServiceRequest"}


def test_every_line_says_what_the_process_is() -> None:
    fields = 'fields={"runner_id": "r1", "model": "mine"}'
    lines, _ = run(PROCESS.replace('log_format="json"', f'log_format="json", {fields}'))
    assert lines[0]["runner_id"] == "r1"
    assert lines[0]["model"] == "m", "a line's own fields go before"


def test_a_collector_that_is_gone_does_not_hold_up_the_exit() -> None:
    lines, output = run(
        PROCESS.replace("shutdown()", "shutdown(0.5)"),
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
    )
    assert output == "grpc exporter"
    assert lines[0]["message"] == "in the span"


@pytest.mark.parametrize(
    ("env", "signals"),
    [
        ({}, set()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, {"traces", "metrics", "logs"}),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, {"traces"}),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_LOGS_EXPORTER": "none"},
            {"traces", "metrics"},
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, set()),
    ],
)
def test_which_signals_are_exported(env: dict[str, str], signals: set[str]) -> None:
    assert exported_signals(env) == signals


@pytest.mark.parametrize("value", ["", "nonsense", "00-0-0-00"])
def test_a_damaged_context_is_none(value: str) -> None:
    assert not context_from_env({"TRACEPARENT": value})


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_service_starts_small() -> None:
    code = """
import asyncio, grpc
from headrace.telemetry.setup import configure
from headrace.rpc.service import server_interceptors
from headrace.rpc.health import HealthServicer
configure("headrace-controller", instance_id="c", log_format="json")
server_interceptors(), HealthServicer()
print(open("/proc/self/statm").read().split()[1])
"""
    _, pages = run(code)
    assert int(pages) * os.sysconf("SC_PAGE_SIZE") < 64 << 20
