"""One trace tells the story: from the command line to the last token, in three processes."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from headrace.client import Client
from tests.e2e.conftest import TINY
from tests.e2e.harness import MODEL, PATIENCE, Controller, StartController, headrace

STREAM = "headrace.v1.CompletionService/StreamCompletion"


@dataclass(frozen=True)
class Span:
    """A span as it was exported."""

    service: str
    message: SpanMessage

    @property
    def name(self) -> str:
        return self.message.name

    @property
    def kind(self) -> str:
        return SpanMessage.SpanKind.Name(self.message.kind).removeprefix("SPAN_KIND_")

    @property
    def attributes(self) -> dict[str, Any]:
        found = {}
        for item in self.message.attributes:
            kind = item.value.WhichOneof("value")
            found[item.key] = getattr(item.value, kind) if kind else None
        return found


class Collector(TraceServiceServicer):
    """Takes spans over OTLP/gRPC."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._changed = threading.Condition()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def Export(
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        with self._changed:
            for resource in request.resource_spans:
                described = {
                    item.key: item.value.string_value for item in resource.resource.attributes
                }
                for scope in resource.scope_spans:
                    self._spans += [Span(described["service.name"], span) for span in scope.spans]
            self._changed.notify_all()
        return ExportTraceServiceResponse()

    def trace(self, trace_id: str, spans: int) -> list[Span]:
        """The spans of a trace, once there are so many."""
        wanted = bytes.fromhex(trace_id)

        def found() -> list[Span]:
            return [span for span in self._spans if span.message.trace_id == wanted]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= spans, 20)
            return found()

    def close(self) -> None:
        self._server.stop(0).wait(10)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture(scope="module")
def traced(shared_home: Any, collector: Collector) -> Iterator[Controller]:
    with Controller(shared_home, extra=collector.environment) as running:
        yield running


def the(spans: list[Span], service: str, name: str, kind: str = "INTERNAL") -> Span:
    """The one span of a service with this name."""
    found = [s for s in spans if (s.service, s.name, s.kind) == (f"headrace-{service}", name, kind)]
    assert len(found) == 1, [(s.service, s.name, s.kind) for s in spans]
    return found[0]


def test_one_trace_from_the_client_to_the_last_token(
    traced: Controller, collector: Collector
) -> None:
    arguments = ("--temperature", "0", "--max-tokens", "4", "--json")
    shown = json.loads(headrace(traced, "run", MODEL, "Count.", *arguments).stdout)
    spans = collector.trace(shown["trace_id"], spans=12)

    call = the(spans, "cli", STREAM, "CLIENT")
    server = the(spans, "controller", STREAM, "SERVER")
    queue = the(spans, "controller", "headrace.queue")
    load = the(spans, "controller", "headrace.load")
    attempt = the(spans, "controller", STREAM, "CLIENT")
    own_load = the(spans, "runner", "headrace.load")
    report = the(spans, "runner", "headrace.v1.RunnerService/GetRunner", "SERVER")
    runner = the(spans, "runner", STREAM, "SERVER")
    generation = the(spans, "runner", f"chat {MODEL}")
    waiting = the(spans, "runner", "headrace.queue")
    prefill = the(spans, "runner", "headrace.prefill")
    decode = the(spans, "runner", "headrace.decode")

    parents = {span.message.span_id: span.message.parent_span_id for span in spans}
    assert parents[call.message.span_id] == b""
    for child, parent in (
        (server, call),
        (queue, server),
        (load, server),
        (attempt, server),
        (own_load, server),
        (report, server),
        (runner, attempt),
        (generation, runner),
        (waiting, generation),
        (prefill, generation),
        (decode, generation),
    ):
        assert parents[child.message.span_id] == parent.message.span_id, child.name
        # Clocks of one machine: a part lies within its whole, but for a rounding.
        slack = 5_000_000
        assert child.message.start_time_unix_nano >= parent.message.start_time_unix_nano - slack
        assert child.message.end_time_unix_nano <= parent.message.end_time_unix_nano + slack
    assert load.message.end_time_unix_nano <= attempt.message.start_time_unix_nano + 5_000_000
    assert prefill.message.end_time_unix_nano == decode.message.start_time_unix_nano

    assert server.attributes["rpc.system.name"] == "grpc"
    assert server.attributes["rpc.response.status_code"] == "OK"
    wanted = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "mlx",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 4,
        "gen_ai.usage.output_tokens": 4,
        "gen_ai.usage.input_tokens": shown["usage"]["prompt_tokens"],
    }
    assert wanted.items() <= generation.attributes.items()
    assert "Count" not in str([span.message for span in spans]), "prompts are not recorded"


def test_a_failed_call_says_so_in_its_trace(traced: Controller, collector: Collector) -> None:
    headrace(traced, "load", MODEL)
    ended = headrace(traced, "run", MODEL, "x", "--temperature", "11", check=False)
    assert ended.returncode == 2
    trace_id = ended.stderr.split("trace ")[1].split()[0]
    spans = collector.trace(trace_id, spans=2)
    call, server = the(spans, "cli", STREAM, "CLIENT"), the(spans, "controller", STREAM, "SERVER")
    assert call.message.status.code == 2
    assert call.attributes["error.type"] == "INVALID_ARGUMENT"
    # The server did what it should.
    assert server.message.status.code == 0
    assert server.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"


def test_the_log_lines_of_both_processes_carry_the_trace(start: StartController) -> None:
    """Of the load that the request brought about, also where nothing is exported."""
    controller = start()
    arguments = ("--max-tokens", "1", "--json")
    shown = json.loads(headrace(controller, "run", TINY, "x", *arguments).stdout)
    trace = {"trace_id": shown["trace_id"]}
    for text, service in (("loaded in ", "controller"), ("completion ended", "runner")):
        asyncio.run(controller.logged(text, service=f"headrace-{service}", **trace))
    for line in asyncio.run(controller.logged(**trace)):
        assert len(line["span_id"]) == 16
        assert line["level"] in ("INFO", "WARNING")


def test_without_an_endpoint_nothing_is_exported(start: StartController) -> None:
    controller = start()
    with Client(controller.target, timeout=PATIENCE) as client:
        client.complete(TINY, "x", max_tokens=1)
        for process in (psutil.Process(controller.pid), controller.runner()):
            # All that they have is Unix sockets.
            assert process.net_connections("inet") == []
            loaded = process.memory_maps(grouped=True)
            assert not any("opentelemetry/exporter" in mapping.path for mapping in loaded)
