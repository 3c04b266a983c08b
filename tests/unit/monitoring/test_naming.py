"""Our idea of Prometheus's names is that of OpenTelemetry's exporter."""

from __future__ import annotations

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from headrace.telemetry import names
from headrace.telemetry.names import CounterSpec, HistogramSpec, LevelSpec
from headrace_server.monitoring.naming import Spec, series

SPECS = [
    value
    for value in vars(names).values()
    if isinstance(value, CounterSpec | HistogramSpec | LevelSpec)
]


def test_no_two_metrics_have_one_name() -> None:
    found = [name for spec in SPECS for name in series(spec)]
    assert len(found) == len(set(found)) > 30


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_series_are_named_as_the_exporter_names_them(spec: Spec) -> None:
    registry = CollectorRegistry()
    reader = PrometheusMetricReader(
        disable_target_info=True, scope_info_enabled=False, registry=registry
    )
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("test")
    match spec:
        case HistogramSpec():
            spec.create(meter).record(1.0)
        case CounterSpec():
            spec.create(meter).add(1)
        case LevelSpec():
            spec.observe(meter, lambda _: [Observation(1)])
    text = generate_latest(registry).decode()
    exported = {
        sample.name for family in text_string_to_metric_families(text) for sample in family.samples
    }
    assert exported == set(series(spec))
