"""Exemplars for OpenTelemetry's exporter to Prometheus, which leaves them out.

It makes the families as ever; the exemplars that it was given are put to their buckets here. They
are seen by who asks for OpenMetrics: the older text format has no place for them.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import ExemplarFilter
from opentelemetry.sdk.metrics.export import HistogramDataPoint, Metric, MetricsData
from opentelemetry.util.types import AnyValue, Attributes
from prometheus_client import CollectorRegistry
from prometheus_client import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from headrace_server.monitoring.naming import family, label

_Series = tuple[str, frozenset[tuple[str, str]], str]
"""A histogram's name, its labels, and the upper bound of a bucket."""


class AnySpan(ExemplarFilter):
    """Whatever is measured in a span may be an exemplar, sampled or not: its trace is known here,
    if only in log lines."""

    def should_sample(
        self, value: float, time_unix_nano: int, attributes: Attributes, context: Context
    ) -> bool:
        """Whether there is a span."""
        return trace.get_current_span(context).get_span_context().is_valid


class ExemplarReader(PrometheusMetricReader):
    """OpenTelemetry's reader for Prometheus, with the last exemplar of each bucket.

    They are kept, since OpenTelemetry gives each to one collection alone, and there may be several
    who scrape.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        """`registry`: what is to be scraped."""
        families = CollectorRegistry()
        # Scopes and what else the resource tells are in `target_info`, or the same for all.
        super().__init__(scope_info_enabled=False, registry=families)
        self._exemplars: dict[_Series, Exemplar] = {}
        registry.register(_WithExemplars(families, self._exemplars))

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        self._exemplars.update(_exemplars(metrics_data))
        super()._receive_metrics(metrics_data, timeout_millis, **kwargs)


class _WithExemplars(Collector):
    def __init__(self, families: CollectorRegistry, exemplars: dict[_Series, Exemplar]) -> None:
        self._families = families
        self._exemplars = exemplars

    def collect(self) -> Iterable[Family]:
        for metric in self._families.collect():
            if metric.type == "histogram":
                metric.samples = [self._with_exemplar(metric.name, s) for s in metric.samples]
            yield metric

    def _with_exemplar(self, name: str, sample: Sample) -> Sample:
        bound = sample.labels.get("le", "")
        # The exporter gives every series all labels of its metric, empty where it has none.
        labels = frozenset((k, v) for k, v in sample.labels.items() if v and k != "le")
        exemplar = self._exemplars.get((name, labels, bound))
        return sample if exemplar is None else sample._replace(exemplar=exemplar)


def _exemplars(data: MetricsData | None) -> Iterator[tuple[_Series, Exemplar]]:
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                yield from _exemplars_of(metric)


def _exemplars_of(metric: Metric) -> Iterator[tuple[_Series, Exemplar]]:
    name = family(metric.name, metric.unit or "")
    for point in metric.data.data_points:
        if not isinstance(point, HistogramDataPoint):
            continue
        labels = frozenset((label(k), _text(v)) for k, v in (point.attributes or {}).items())
        bounds = [*map(str, point.explicit_bounds), "+Inf"]
        for found in point.exemplars:
            if found.trace_id is None or found.span_id is None:
                continue
            bound = bounds[bisect_left(point.explicit_bounds, found.value)]
            ids = {
                "trace_id": trace.format_trace_id(found.trace_id),
                "span_id": trace.format_span_id(found.span_id),
            }
            moment = found.time_unix_nano / 1e9
            yield (name, labels, bound), Exemplar(ids, float(found.value), moment)


def _text(value: AnyValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
