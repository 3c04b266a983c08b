"""Spans are handed on in whole branches, and recorded whether or not they are sampled."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import Tracer

from headrace.telemetry import propagation
from headrace.telemetry.branches import WholeBranches
from headrace.telemetry.sampling import RecordAll


class Batches(SpanExporter):
    """The names of what was handed on together."""

    def __init__(self) -> None:
        self.got: list[list[str]] = []
        self.ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.got.append([span.name for span in spans])
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.ended = True


@pytest.fixture
def local() -> Batches:
    return Batches()


def provider_of(processor: SpanProcessor) -> TracerProvider:
    provider = TracerProvider(sampler=ALWAYS_ON, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider


@pytest.fixture
def tracer(local: Batches) -> Tracer:
    return provider_of(WholeBranches(None, local)).get_tracer("t")


def below(parent: trace.Span) -> Context:
    return trace.set_span_in_context(parent, Context())


def remote(parent: trace.Span) -> Context:
    """The parent as another process sees it."""
    return propagation.extract(propagation.headers(below(parent)).items())


def test_a_branch_goes_together_parents_first(tracer: Tracer, local: Batches) -> None:
    root = tracer.start_span("root", Context())
    inner = tracer.start_span("inner", below(root))
    tracer.start_span("leaf", below(inner)).end()
    tracer.start_span("other leaf", below(inner)).end()
    inner.end()
    assert local.got == []
    root.end()
    assert local.got == [["root", "inner", "leaf", "other leaf"]]


def test_a_parent_in_another_process_is_not_waited_for(tracer: Tracer, local: Batches) -> None:
    caller = tracer.start_span("caller", Context())
    served = tracer.start_span("served", remote(caller))
    tracer.start_span("work", below(served)).end()
    served.end()
    assert local.got == [["served", "work"]]
    caller.end()
    assert local.got[1:] == [["caller"]]


def test_what_outlives_its_root_goes_with_what_hangs_from_it(
    tracer: Tracer, local: Batches
) -> None:
    root = tracer.start_span("root", Context())
    load = tracer.start_span("load", below(root))
    tracer.start_span("early", below(load)).end()
    root.end()
    assert local.got == [["root"]], "the load is not whole yet"
    tracer.start_span("late", below(load)).end()
    load.end()
    assert local.got[1:] == [["load", "early", "late"]]


def test_a_child_that_ends_after_its_parent_still_waits_for_the_root(
    tracer: Tracer, local: Batches
) -> None:
    root = tracer.start_span("root", Context())
    parent = tracer.start_span("parent", below(root))
    child = tracer.start_span("child", below(parent))
    parent.end()
    child.end()
    assert local.got == []
    root.end()
    assert local.got == [["root", "parent", "child"]]


def test_other_traces_are_not_held_up(tracer: Tracer, local: Batches) -> None:
    tracer.start_span("held", below(tracer.start_span("never ends", Context()))).end()
    with tracer.start_as_current_span("another", Context()):
        pass
    assert local.got == [["another"]]


def test_beyond_the_limit_the_oldest_go_as_they_are(local: Batches) -> None:
    tracer = provider_of(WholeBranches(None, local, limit=3)).get_tracer("t")
    old, new = tracer.start_span("old", Context()), tracer.start_span("new", Context())
    for parent, name in ((old, "o1"), (new, "n1"), (old, "o2")):
        tracer.start_span(name, below(parent)).end()
    assert local.got == []
    tracer.start_span("n2", below(new)).end()
    assert local.got == [["o1", "o2"]]
    new.end()
    old.end()
    assert local.got[1:] == [["new", "n1", "n2"], ["old"]]


def test_at_the_end_what_is_held_is_handed_on(local: Batches) -> None:
    provider = provider_of(WholeBranches(None, local))
    tracer = provider.get_tracer("t")
    parent = tracer.start_span("open", below(tracer.start_span("root", Context())))
    tracer.start_span("leaf", below(parent)).end()
    provider.shutdown()
    assert local.got == [["leaf"]]
    assert local.ended


def test_at_the_end_parents_go_first(local: Batches) -> None:
    provider = provider_of(WholeBranches(None, local))
    tracer = provider.get_tracer("t")
    parent = tracer.start_span("ended", below(tracer.start_span("open", Context())))
    tracer.start_span("leaf", below(parent)).end()
    parent.end()
    provider.shutdown()
    assert local.got == [["ended", "leaf"]]


def test_a_span_may_end_while_another_is_taken(local: Batches) -> None:
    """As where the garbage collector closes a coroutine in that very moment."""
    processor = WholeBranches(None, local)
    provider = provider_of(processor)
    tracer = provider.get_tracer("t")

    def work() -> None:
        with processor._lock:
            tracer.start_span("collected", Context()).end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert local.got == [["collected"]]


def test_who_ends_a_span_does_not_pay_for_who_keeps_it() -> None:
    class Broken(Batches):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            raise OSError("the disk is full")

    exported = InMemorySpanExporter()
    tracer = provider_of(WholeBranches(SimpleSpanProcessor(exported), Broken())).get_tracer("t")
    tracer.start_span("work", Context()).end()
    assert [span.name for span in exported.get_finished_spans()] == ["work"]


def test_threads_end_spans_of_one_branch(tracer: Tracer, local: Batches) -> None:
    root = tracer.start_span("root", Context())

    def work() -> None:
        for _ in range(200):
            tracer.start_span("leaf", below(root)).end()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    root.end()
    assert local.got == [["root", *["leaf"] * 800]]


def test_nothing_of_a_branch_is_kept(local: Batches) -> None:
    processor = WholeBranches(None, local, limit=2)
    tracer = provider_of(processor).get_tracer("t")
    for _ in range(5):
        root = tracer.start_span("root", Context())
        for _ in range(3):
            tracer.start_span("leaf", below(root)).end()
        root.end()
    assert not processor._branches._held
    assert not processor._branches._here
    assert processor._branches._count == 0


@pytest.mark.parametrize("sampled", [True, False])
def test_the_callers_choice_is_for_the_export_alone(local: Batches, sampled: bool) -> None:
    exported = InMemorySpanExporter()
    provider = TracerProvider(sampler=RecordAll(ParentBased(ALWAYS_ON)), shutdown_on_exit=False)
    provider.add_span_processor(WholeBranches(SimpleSpanProcessor(exported), local))
    tracer = provider.get_tracer("t")
    parent = f"00-{'a' * 32}-{'b' * 16}-{'01' if sampled else '00'}"
    served = tracer.start_span("served", propagation.extract([("traceparent", parent)]))
    served.set_attribute("kept", 1)
    tracer.start_span("work", below(served)).end()
    # Whoever is called next is told what the caller has said.
    assert propagation.headers(below(served))["traceparent"].endswith("01" if sampled else "00")
    served.end()
    assert local.got == [["served", "work"]]
    assert len(exported.get_finished_spans()) == (2 if sampled else 0)


def test_what_nobody_exports_is_recorded_and_not_sampled(local: Batches) -> None:
    provider = TracerProvider(sampler=RecordAll(ALWAYS_OFF), shutdown_on_exit=False)
    provider.add_span_processor(WholeBranches(None, local))
    span = provider.get_tracer("t").start_span("work", Context(), attributes={"a": 1})
    assert span.is_recording()
    assert isinstance(span, ReadableSpan)
    assert dict(span.attributes or {}) == {"a": 1}
    assert not span.get_span_context().trace_flags.sampled
    span.end()
    assert local.got == [["work"]]
