"""An OTLP receiver over gRPC for all three signals, and the trees that its spans make.

Nothing here knows what a test expects, but that spans hang together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

PATIENCE = 30.0
"""Seconds for what was recorded to come."""
SLACK = 5_000_000
"""Nanoseconds by which two readings of one machine's clocks may differ."""


def values(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    """Attributes as plain values."""
    return {
        each.key: (
            [getattr(one, one.WhichOneof("value") or "") for one in each.value.array_value.values]
            if each.value.HasField("array_value")
            else getattr(each.value, each.value.WhichOneof("value") or "string_value")
        )
        for each in attributes
    }


@dataclass(frozen=True)
class Span:
    """A span as it was exported."""

    service: str
    message: SpanMessage
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.message.name

    @property
    def kind(self) -> str:
        return SpanMessage.SpanKind.Name(self.message.kind).removeprefix("SPAN_KIND_")

    @property
    def id(self) -> str:
        return self.message.span_id.hex()

    @property
    def failed(self) -> bool:
        return self.message.status.code == 2

    @property
    def events(self) -> dict[str, dict[str, Any]]:
        """The attributes of its events."""
        return {event.name: values(event.attributes) for event in self.message.events}

    @property
    def links(self) -> list[str]:
        """The spans that it refers to."""
        return [link.span_id.hex() for link in self.message.links]


@dataclass(frozen=True)
class Line:
    """A log record as it was exported."""

    service: str
    message: str
    trace_id: str
    span_id: str
    fields: dict[str, Any]


class Tree:
    """The spans of one trace."""

    def __init__(self, spans: Iterable[Span], caller: str = "") -> None:
        """`caller`: the span that called, which nobody exports; the tree has one root without."""
        self.spans = sorted(spans, key=lambda span: span.message.start_time_unix_nano)
        self.caller = caller

    def the(self, service: str, name: str, kind: str = "INTERNAL") -> Span:
        """The one span of a service with this name."""
        (span,) = self.all(service, name, kind)
        return span

    def all(self, service: str, name: str, kind: str = "INTERNAL") -> list[Span]:
        """The spans of a service with this name, the first to begin first."""
        wanted = (f"headrace-{service}", name, kind)
        return [each for each in self.spans if (each.service, each.name, each.kind) == wanted]

    def below(self, span: Span) -> list[Span]:
        """Its children."""
        return [each for each in self.spans if each.message.parent_span_id.hex() == span.id]

    def orphans(self) -> list[Span]:
        """Spans whose parent is not there. The root is none."""
        ids = {span.id for span in self.spans} | {self.caller}
        return [span for span in self.spans if span.message.parent_span_id.hex() not in ids]

    def adrift(self, *, ends: bool = True) -> list[tuple[str, str]]:
        """Children that are not within their parent's time: its name, and theirs.

        Without `ends` they may be longer: who cancels a call, or ends it by an error, is done
        before the other side is.
        """
        by_id = {span.id: span.message for span in self.spans}
        return [
            (parent.name, child.name)
            for span in self.spans
            if (parent := by_id.get((child := span.message).parent_span_id.hex())) is not None
            and not (
                parent.start_time_unix_nano - SLACK <= child.start_time_unix_nano
                and child.start_time_unix_nano <= child.end_time_unix_nano
                and (not ends or child.end_time_unix_nano <= parent.end_time_unix_nano + SLACK)
            )
        ]

    def __str__(self) -> str:
        def lines(parent: str, depth: int) -> Iterator[str]:
            for span in self.spans:
                if span.message.parent_span_id.hex() == parent:
                    yield f"{'  ' * depth}{span.service} {span.kind} {span.name}"
                    yield from lines(span.id, depth + 1)

        lost = [f"orphan: {span.service} {span.kind} {span.name}" for span in self.orphans()]
        return "\n".join([*lines(self.caller, 0), *lost])


class Receiver(
    trace_service_pb2_grpc.TraceServiceServicer,
    metrics_service_pb2_grpc.MetricsServiceServicer,
    logs_service_pb2_grpc.LogsServiceServicer,
):
    """Takes what is exported. `Export` is told apart by its request."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.lines: list[Line] = []
        self.metrics: set[tuple[str, str]] = set()
        """Services, and the metrics that they have exported."""
        self.raw: list[Message] = []
        """Everything, as it came."""
        self._changed = threading.Condition()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        untyped: tuple[Any, ...] = (
            trace_service_pb2_grpc.add_TraceServiceServicer_to_server,
            metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server,
            logs_service_pb2_grpc.add_LogsServiceServicer_to_server,
        )
        for add in untyped:
            add(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BLRP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        """Of processes that are to export to it."""

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._changed:
            self.raw.append(request)
            answer = self._take(request)
            self._changed.notify_all()
        return answer

    def _take(self, request: Any) -> Any:
        if isinstance(request, traces.ExportTraceServiceRequest):
            for source in request.resource_spans:
                service = values(source.resource.attributes)["service.name"]
                for scope in source.scope_spans:
                    self.spans += [Span(service, s, values(s.attributes)) for s in scope.spans]
            return traces.ExportTraceServiceResponse()
        if isinstance(request, logs.ExportLogsServiceRequest):
            for described in request.resource_logs:
                service = values(described.resource.attributes)["service.name"]
                for scope_of_lines in described.scope_logs:
                    self.lines += [_line(service, each) for each in scope_of_lines.log_records]
            return logs.ExportLogsServiceResponse()
        for measured in request.resource_metrics:
            service = values(measured.resource.attributes)["service.name"]
            for scope_of_metrics in measured.scope_metrics:
                self.metrics |= {(service, each.name) for each in scope_of_metrics.metrics}
        return metrics.ExportMetricsServiceResponse()

    def wait_for(self, true: Callable[[], bool], what: Callable[[], object] = str) -> None:
        """Wait until it is so after some export. Fails after a while, saying `what` there is."""
        with self._changed:
            assert self._changed.wait_for(true, PATIENCE), what()

    def tree(self, trace_id: str, caller: str = "", whole: Callable[[Tree], bool] = bool) -> Tree:
        """The tree of a trace, once it has a root, no orphan, and is `whole`."""

        def found() -> Tree:
            wanted = bytes.fromhex(trace_id)
            return Tree([s for s in self.spans if s.message.trace_id == wanted], caller)

        def there() -> bool:
            tree = found()
            return bool(tree.spans) and not tree.orphans() and whole(tree)

        self.wait_for(there, lambda: f"what there is of the trace:\n{found()}")
        return found()

    def story(self, trace_id: str) -> list[Line]:
        """The log lines of a trace so far."""
        with self._changed:
            return self.lines_of(trace_id)

    def lines_of(self, trace_id: str) -> list[Line]:
        """The same, for who is asked within `wait_for`."""
        return [line for line in self.lines if line.trace_id == trace_id]

    def said(self, trace_id: str, begin: str, times: int = 1) -> list[Line]:
        """The log lines of a trace that begin so, once there are so many."""

        def found() -> list[Line]:
            return [line for line in self.lines_of(trace_id) if line.message.startswith(begin)]

        self.wait_for(lambda: len(found()) >= times, lambda: self.lines_of(trace_id))
        return found()

    def close(self) -> None:
        self._server.stop(0).wait(10)


def _line(service: str, record: LogRecord) -> Line:
    return Line(
        service,
        record.body.string_value,
        record.trace_id.hex(),
        record.span_id.hex(),
        values(record.attributes),
    )
