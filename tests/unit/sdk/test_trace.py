"""One client span a call where there is a tracer, and a trace id in any case."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from headrace import AsyncClient, Client
from headrace.errors import ModelNotFound
from tests.unit.sdk import fake as say
from tests.unit.sdk.fake import Fake


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


def trace_of(span: ReadableSpan) -> str:
    assert span.context
    return trace.format_trace_id(span.context.trace_id)


def sent(fake: Fake) -> list[str]:
    return [str(metadata["traceparent"]).split("-")[1] for metadata in fake.metadata]


def test_blocking_calls(fake: Fake, exporter: InMemorySpanExporter) -> None:
    fake.models["m"] = say.model("m")
    with Client(fake.target) as client:
        whole = client.complete("m", "p")
        client.get_model("m")
        with pytest.raises(ModelNotFound) as caught:
            client.get_model("n")
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == [
        "headrace.v1.CompletionService/StreamCompletion",
        "headrace.v1.ModelService/GetModel",
        "headrace.v1.ModelService/GetModel",
    ]
    assert [trace_of(span) for span in spans] == sent(fake)
    assert whole.trace_id == trace_of(spans[0])
    assert caught.value.__notes__ == [f"trace {trace_of(spans[2])}"]


async def test_awaited_calls(fake: Fake, exporter: InMemorySpanExporter) -> None:
    async with AsyncClient(fake.target) as client:
        whole = await client.complete("m", "p")
        await client.tokenize("m", "x")
    spans = exporter.get_finished_spans()
    assert [trace_of(span) for span in spans] == sent(fake)
    assert whole.trace_id == trace_of(spans[0])


def test_a_call_belongs_to_the_trace_around_it(fake: Fake, exporter: InMemorySpanExporter) -> None:
    tracer = trace.get_tracer("test", tracer_provider=trace.get_tracer_provider())
    with Client(fake.target) as client, tracer.start_as_current_span("outer") as outer:
        whole = client.complete("m", "p")
    assert whole.trace_id == trace.format_trace_id(outer.get_span_context().trace_id)


def test_without_a_tracer_each_call_has_an_id_of_its_own(fake: Fake) -> None:
    with Client(fake.target) as client:
        ids = [client.complete("m", "p").trace_id for _ in range(3)]
    assert ids == sent(fake)
    assert len(set(ids)) == 3


async def test_a_call_for_a_model_can_be_told_by_its_header(fake: Fake) -> None:
    fake.models["m"] = say.model("m")
    with Client(fake.target) as client:
        client.complete("m", "p")
        client.list_models()
        with pytest.raises(ModelNotFound):
            client.get_model("é")
    async with AsyncClient(fake.target) as client_:
        await client_.get_model("m")
    assert [metadata.get("headrace-model") for metadata in fake.metadata] == ["m", None, None, "m"]
