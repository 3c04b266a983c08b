"""The exemplars that OpenTelemetry took reach who scrapes, each with its bucket."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from headrace.telemetry.names import HistogramSpec
from headrace_server.monitoring.exemplars import AnySpan, ExemplarReader

SPEC = HistogramSpec("test.duration", "Of tests.", (0.1, 1.0))


def in_trace(number: int, *, sampled: bool = True) -> Context:
    """The context of some span of a trace."""
    flags = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
    span = SpanContext(number, number + 1, is_remote=False, trace_flags=flags)
    return trace.set_span_in_context(NonRecordingSpan(span))


class Scraped:
    """A registry with one histogram."""

    def __init__(self, *, any_span: bool = False) -> None:
        self.registry = CollectorRegistry()
        reader = ExemplarReader(self.registry)
        chosen = AnySpan() if any_span else None
        meters = MeterProvider([reader], exemplar_filter=chosen, shutdown_on_exit=False)
        self.histogram = SPEC.create(meters.get_meter("test"))

    def exemplars(self) -> dict[tuple[str, str], tuple[str, float]]:
        """Trace id and value by label `kind` and bucket."""
        text = openmetrics.generate_latest(self.registry).decode()  # type: ignore[no-untyped-call]
        families = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        return {
            (sample.labels.get("kind", ""), sample.labels["le"]): (
                sample.exemplar.labels["trace_id"],
                sample.exemplar.value,
            )
            for family in families
            for sample in family.samples
            if sample.exemplar is not None
        }


def test_each_bucket_has_the_trace_of_the_last_that_fell_into_it() -> None:
    scraped = Scraped()
    for number, value in ((1, 0.05), (2, 0.5), (3, 7.0), (4, 0.1)):
        scraped.histogram.record(value, {"kind": "a"}, in_trace(number))
    scraped.histogram.record(0.5, {"kind": "b"}, in_trace(9))
    assert scraped.exemplars() == {
        ("a", "0.1"): (f"{4:032x}", 0.1),
        ("a", "1.0"): (f"{2:032x}", 0.5),
        ("a", "+Inf"): (f"{3:032x}", 7.0),
        ("b", "1.0"): (f"{9:032x}", 0.5),
    }


def test_a_series_without_a_label_that_others_have_keeps_its_own() -> None:
    scraped = Scraped()
    scraped.histogram.record(0.5, {"kind": "a"}, in_trace(1))
    scraped.histogram.record(0.5, {}, in_trace(2))
    found = scraped.exemplars()
    assert found["a", "1.0"][0] == f"{1:032x}"
    assert found["", "1.0"][0] == f"{2:032x}"


def test_whoever_scrapes_second_sees_them_too() -> None:
    scraped = Scraped()
    scraped.histogram.record(0.5, {"kind": "a"}, in_trace(1))
    first = scraped.exemplars()
    scraped.histogram.record(0.5, {"kind": "a"})
    assert scraped.exemplars() == first != {}


def test_the_older_text_format_has_none() -> None:
    scraped = Scraped()
    scraped.histogram.record(0.5, {"kind": "a"}, in_trace(1))
    text = generate_latest(scraped.registry).decode()
    assert 'test_duration_seconds_bucket{kind="a",le="1.0"} 1.0\n' in text
    assert "trace_id" not in text


@pytest.mark.parametrize("any_span", [False, True])
def test_spans_that_are_not_sampled_count_where_no_trace_is_exported(any_span: bool) -> None:
    scraped = Scraped(any_span=any_span)
    scraped.histogram.record(0.5, {"kind": "a"}, in_trace(1, sampled=False))
    scraped.histogram.record(0.05, {"kind": "a"}, Context())
    assert list(scraped.exemplars()) == ([("a", "1.0")] if any_span else [])
