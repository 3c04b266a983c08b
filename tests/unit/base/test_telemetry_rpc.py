"""Spans and metrics of calls, from a client through a server that calls another."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeAlias

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from headrace import errors
from headrace.rpc.health import NOT_SERVING, SERVING, HealthServicer
from headrace.rpc.service import ErrorInterceptor, ValidationInterceptor
from headrace.telemetry.rpc import (
    SyncClientInterceptor,
    TelemetryServerInterceptor,
    _peer,
    _server,
    aio_client_interceptors,
)
from headrace.v1 import completion_pb2, completion_pb2_grpc, tokenize_pb2, tokenize_pb2_grpc

Request = completion_pb2.StreamCompletionRequest
Response = completion_pb2.StreamCompletionResponse
Register: TypeAlias = Callable[[grpc.aio.Server], None]

STREAM = "headrace.v1.CompletionService/StreamCompletion"
TOKENIZE = "headrace.v1.TokenizeService/Tokenize"


def delta(text: str) -> Response:
    return Response(delta=completion_pb2.CompletionDelta(text=text))


class Spans(InMemorySpanExporter):
    """Spans in memory; the test can wait for them, since servers end theirs after the answer."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = threading.Condition()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self._ended:
            self._ended.notify_all()
            return super().export(spans)

    async def wait(self, count: int) -> list[ReadableSpan]:
        def enough() -> bool:
            return len(self.get_finished_spans()) >= count

        def wait() -> bool:
            with self._ended:
                return self._ended.wait_for(enough, 5)

        assert await asyncio.to_thread(wait), self.get_finished_spans()
        found = list(self.get_finished_spans())
        assert len(found) == count
        return found


class Telemetry:
    """Spans and metrics of the test in memory."""

    def __init__(self, sampler: Any = None) -> None:
        self.exporter = Spans()
        self.tracers = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.tracers.get_tracer("test")
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)

    def server(self) -> list[Any]:
        return [
            TelemetryServerInterceptor(self.tracers, self.meters),
            ErrorInterceptor(),
            ValidationInterceptor(),
        ]

    def client(self, target: str) -> list[Any]:
        return aio_client_interceptors(target, self.tracers, self.meters)

    async def spans(self, count: int) -> dict[tuple[str, str], ReadableSpan]:
        found = await self.exporter.wait(count)
        return {(span.kind.name, span.name): span for span in found}


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


class Backend(tokenize_pb2_grpc.TokenizeServiceServicer):
    """The last hop: fails with the code that the text names."""

    async def Tokenize(self, request: Any, context: Any) -> tokenize_pb2.TokenizeResponse:
        if request.text:
            await context.abort(grpc.StatusCode[request.text], "asked to")
        return tokenize_pb2.TokenizeResponse()


def tokenizer(kind: Any) -> Register:
    """Register a servicer that need not have every method."""
    return lambda server: tokenize_pb2_grpc.add_TokenizeServiceServicer_to_server(kind(), server)


class Frontend(completion_pb2_grpc.CompletionServiceServicer):
    """A stream that asks the backend between its messages."""

    def __init__(self, telemetry: Telemetry, backend: grpc.aio.Channel) -> None:
        self.telemetry = telemetry
        self.backend = tokenize_pb2_grpc.TokenizeServiceStub(backend)
        self.current: list[int] = []
        self.blocked = asyncio.Event()

    def see(self) -> None:
        self.current.append(trace.get_current_span().get_span_context().span_id)

    async def StreamCompletion(self, request: Request, context: Any) -> AsyncIterator[Response]:
        self.see()
        yield delta("a")
        self.see()
        with self.telemetry.tracer.start_as_current_span("decode"):
            await self.backend.Tokenize(tokenize_pb2.TokenizeRequest(model="m"))
        yield delta("b")
        self.see()
        if request.prompt == "block":
            self.blocked.set()
            await asyncio.Event().wait()
        if request.prompt == "full":
            raise errors.QueueFull(1, queue="runner", limit=1)
        if request.prompt == "bug":
            raise ZeroDivisionError


@pytest.fixture
async def frontend(
    serve: Any, connect: Any, telemetry: Telemetry
) -> tuple[Frontend, completion_pb2_grpc.CompletionServiceStub]:
    backend = await serve(
        tokenizer(Backend),
        interceptors=telemetry.server(),
    )
    servicer = Frontend(telemetry, await connect(backend, *telemetry.client(backend)))
    # The server is started inside a span, of which no call may become a child.
    with telemetry.tracer.start_as_current_span("start-up"):
        target = await serve(
            lambda server: completion_pb2_grpc.add_CompletionServiceServicer_to_server(
                servicer, server
            ),
            interceptors=telemetry.server(),
        )
    telemetry.exporter.clear()
    channel = await connect(target, *telemetry.client(target))
    return servicer, completion_pb2_grpc.CompletionServiceStub(channel)


def parent(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def own(span: ReadableSpan) -> int:
    assert span.context is not None
    span_id: int = span.context.span_id
    return span_id


async def test_one_trace_through_two_hops(frontend: Any, telemetry: Telemetry) -> None:
    servicer, stub = frontend
    with telemetry.tracer.start_as_current_span("user") as user:
        texts = [m.delta.text async for m in stub.StreamCompletion(Request(model="m", prompt="x"))]
    assert texts == ["a", "b"]
    spans = await telemetry.spans(6)
    client, server = spans["CLIENT", STREAM], spans["SERVER", STREAM]
    decode = spans["INTERNAL", "decode"]
    inner_client, inner_server = spans["CLIENT", TOKENIZE], spans["SERVER", TOKENIZE]
    assert parent(client) == user.get_span_context().span_id
    assert parent(server) == own(client)
    assert parent(decode) == own(server)
    assert parent(inner_client) == own(decode)
    assert parent(inner_server) == own(inner_client)
    assert len({span.context.trace_id for span in spans.values() if span.context}) == 1
    assert servicer.current == [own(server)] * 3
    assert server.attributes is not None
    assert server.attributes["rpc.response.status_code"] == "OK"
    assert server.attributes["network.peer.address"] == "127.0.0.1"
    assert client.attributes is not None
    assert client.attributes["server.address"] == "127.0.0.1"
    assert {span.status.status_code for span in spans.values()} == {StatusCode.UNSET}


async def test_a_call_without_a_trace_begins_one(
    telemetry: Telemetry, serve: Any, connect: Any
) -> None:
    """Also on a server that was started inside a span, whose context its tasks inherit."""
    with telemetry.tracer.start_as_current_span("start-up"):
        target = await serve(
            tokenizer(Backend),
            interceptors=telemetry.server(),
        )
    stub = tokenize_pb2_grpc.TokenizeServiceStub(await connect(target))
    await stub.Tokenize(tokenize_pb2.TokenizeRequest(model="m"))
    assert parent((await telemetry.spans(2))["SERVER", TOKENIZE]) is None


async def test_concurrent_streams_keep_their_own_span(frontend: Any, telemetry: Telemetry) -> None:
    _, stub = frontend

    async def one() -> None:
        async for _ in stub.StreamCompletion(Request(model="m", prompt="x")):
            assert not trace.get_current_span().get_span_context().is_valid

    await asyncio.gather(*(one() for _ in range(8)))
    found = await telemetry.exporter.wait(40)
    by_id = {own(span): span for span in found}
    traces: dict[int, set[str]] = {}
    for span in found:
        assert span.context is not None
        traces.setdefault(span.context.trace_id, set()).add(f"{span.kind.name} {span.name}")
        assert parent(span) in by_id or span.kind is SpanKind.CLIENT
    assert len(traces) == 8
    assert all(len(names) == 5 for names in traces.values())


async def test_a_cancelled_stream_ends_its_spans(frontend: Any, telemetry: Telemetry) -> None:
    servicer, stub = frontend
    call = stub.StreamCompletion(Request(model="m", prompt="block"))
    await asyncio.gather(call.read(), servicer.blocked.wait())
    call.cancel()
    spans = await telemetry.spans(5)
    for kind, failed in (("CLIENT", StatusCode.ERROR), ("SERVER", StatusCode.UNSET)):
        span = spans[kind, STREAM]
        assert span.attributes is not None
        assert span.attributes["rpc.response.status_code"] == "CANCELLED"
        assert span.status.status_code is failed


async def test_a_passed_deadline_is_the_servers_error(frontend: Any, telemetry: Telemetry) -> None:
    _, stub = frontend
    call = stub.StreamCompletion(Request(model="m", prompt="block"), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError):
        _ = [message async for message in call]
    spans = await telemetry.spans(5)
    for kind in ("CLIENT", "SERVER"):
        span = spans[kind, STREAM]
        assert span.attributes is not None
        assert span.attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
        assert span.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize(
    ("prompt", "code", "failed"),
    [
        ("full", "RESOURCE_EXHAUSTED", StatusCode.UNSET),
        ("bug", "INTERNAL", StatusCode.ERROR),
    ],
)
async def test_errors_of_handlers(
    frontend: Any, telemetry: Telemetry, prompt: str, code: str, failed: StatusCode
) -> None:
    _, stub = frontend
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [m async for m in stub.StreamCompletion(Request(model="m", prompt=prompt))]
    server = (await telemetry.spans(5))["SERVER", STREAM]
    assert server.attributes is not None
    assert server.attributes["rpc.response.status_code"] == code
    assert server.status.status_code is failed
    assert ("error.type" in server.attributes) is (failed is StatusCode.ERROR)
    if prompt == "bug":
        assert server.context is not None
        assert trace.format_trace_id(server.context.trace_id) in (caught.value.details() or "")


async def test_an_invalid_request_has_its_span(frontend: Any, telemetry: Telemetry) -> None:
    _, stub = frontend
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.StreamCompletion(Request(model="")).read()
    server = (await telemetry.spans(2))["SERVER", STREAM]
    assert server.attributes is not None
    assert server.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert server.status.status_code is StatusCode.UNSET


SERVER_FAULTS = {
    "UNKNOWN",
    "DEADLINE_EXCEEDED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
}


@pytest.mark.parametrize("code", [c.name for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
async def test_which_codes_are_errors(
    serve: Any, connect: Any, telemetry: Telemetry, code: str
) -> None:
    target = await serve(
        tokenizer(Backend),
        interceptors=telemetry.server(),
    )
    channel = await connect(target, *telemetry.client(target))
    stub = tokenize_pb2_grpc.TokenizeServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Tokenize(tokenize_pb2.TokenizeRequest(model="m", text=code))
    # A channel tries again what is UNAVAILABLE, each time with a span of the server's.
    attempts = 4 if code == "UNAVAILABLE" else 1
    for span in await telemetry.exporter.wait(1 + attempts):
        failed = span.kind is SpanKind.CLIENT or code in SERVER_FAULTS
        assert (span.status.status_code is StatusCode.ERROR) is failed
        assert span.attributes is not None
        assert span.attributes.get("error.type") == (code if failed else None)


async def test_durations(frontend: Any, telemetry: Telemetry) -> None:
    _, stub = frontend
    _ = [m async for m in stub.StreamCompletion(Request(model="m", prompt="x"))]
    await telemetry.spans(5)
    data = telemetry.reader.get_metrics_data()
    assert data is not None
    points: dict[tuple[str, object], HistogramDataPoint] = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        assert metric.unit == "s"
        for point in metric.data.data_points:
            assert isinstance(point, HistogramDataPoint)
            assert point.attributes is not None
            points[metric.name, point.attributes["rpc.method"]] = point
    assert set(points) == {
        (f"rpc.{side}.call.duration", method)
        for side in ("client", "server")
        for method in (STREAM, TOKENIZE)
    }
    point = points["rpc.server.call.duration", STREAM]
    assert (point.count, list(point.explicit_bounds)[:2]) == (1, [0.005, 0.01])
    assert point.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": STREAM,
        "rpc.response.status_code": "OK",
    }
    assert 0 < point.sum < 5


async def test_health_is_not_traced(serve: Any, connect: Any, telemetry: Telemetry) -> None:
    health = HealthServicer()
    health.set("", SERVING)
    target = await serve(health.add_to, interceptors=telemetry.server())
    stub = health_pb2_grpc.HealthStub(await connect(target, *telemetry.client(target)))
    async with asyncio.timeout(5):
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        await stub.Check(health_pb2.HealthCheckRequest())
        health.shutdown()
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
    assert telemetry.exporter.get_finished_spans() == ()


async def test_without_sampling_ids_still_travel(serve: Any, connect: Any) -> None:
    quiet = Telemetry(sampler=ALWAYS_OFF)
    seen: list[trace.SpanContext] = []

    class Seeing(Backend):
        async def Tokenize(self, request: Any, context: Any) -> tokenize_pb2.TokenizeResponse:
            seen.append(trace.get_current_span().get_span_context())
            return tokenize_pb2.TokenizeResponse()

    target = await serve(
        tokenizer(Seeing),
        interceptors=quiet.server(),
    )
    stub = tokenize_pb2_grpc.TokenizeServiceStub(await connect(target, *quiet.client(target)))
    with quiet.tracer.start_as_current_span("user") as user:
        await stub.Tokenize(
            tokenize_pb2.TokenizeRequest(model="m"), metadata=(("headrace-digest", "d"),)
        )
    assert [context.trace_id for context in seen] == [user.get_span_context().trace_id]
    assert quiet.exporter.get_finished_spans() == ()


async def test_a_blocking_client(frontend: Any, telemetry: Telemetry, serve: Any) -> None:
    servicer, _ = frontend
    target = await serve(
        lambda server: completion_pb2_grpc.add_CompletionServiceServicer_to_server(
            servicer, server
        ),
        tokenizer(Backend),
        interceptors=telemetry.server(),
    )

    def talk() -> None:
        interceptor = SyncClientInterceptor(target, telemetry.tracers, telemetry.meters)
        with grpc.insecure_channel(target) as plain:
            channel = grpc.intercept_channel(plain, interceptor)
            stream = completion_pb2_grpc.CompletionServiceStub(channel)
            tokens = tokenize_pb2_grpc.TokenizeServiceStub(channel)
            request = Request(model="m", prompt="full")
            with pytest.raises(grpc.RpcError):
                list(stream.StreamCompletion(request, metadata=(("k", "v"),)))
            with pytest.raises(grpc.RpcError):
                tokens.Tokenize(tokenize_pb2.TokenizeRequest(model="m", text="NOT_FOUND"))

    await asyncio.to_thread(talk)
    found = await telemetry.exporter.wait(7)
    client = next(s for s in found if (s.kind, s.name) == (SpanKind.CLIENT, STREAM))
    server = next(s for s in found if (s.kind, s.name) == (SpanKind.SERVER, STREAM))
    assert parent(server) == own(client)
    assert client.attributes is not None
    assert client.attributes["rpc.response.status_code"] == "RESOURCE_EXHAUSTED"
    unary = [s for s in found if s.name == TOKENIZE and s.status.status_code is StatusCode.ERROR]
    assert [s.kind for s in unary] == [SpanKind.CLIENT]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:50151", {"server.address": "127.0.0.1", "server.port": 50151}),
        (
            "dns:///models.example.org:443",
            {"server.address": "models.example.org", "server.port": 443},
        ),
        ("[::1]:50151", {"server.address": "::1", "server.port": 50151}),
        ("unix:///run/r.sock", {"server.address": "/run/r.sock"}),
        ("unix:r.sock", {"server.address": "r.sock"}),
        ("localhost", {"server.address": "localhost"}),
    ],
)
def test_targets(target: str, expected: dict[str, object]) -> None:
    assert _server(target) == expected


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("ipv4:10.0.0.1:99", {"network.peer.address": "10.0.0.1", "network.peer.port": 99}),
        ("ipv6:%5B::1%5D:99", {"network.peer.address": "::1", "network.peer.port": 99}),
        ("unix:", {}),
    ],
)
def test_peers(peer: str, expected: dict[str, object]) -> None:
    assert _peer(peer) == expected
