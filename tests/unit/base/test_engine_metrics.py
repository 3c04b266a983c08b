"""A runner's report as metrics: every number of it that is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from headrace.telemetry import names
from headrace.telemetry.engine import FIGURES, SPREADS, observe
from headrace.v1.runner_pb2 import Distribution, Runner, RunnerLoad, RunnerMemory

LEFT_OUT = {"peak_bytes"}
"""What the system that keeps the others finds by itself."""


def a_report(offset: int = 0) -> Runner:
    """Every number of it another."""
    report = Runner(memory=RunnerMemory(), load=RunnerLoad())
    for part in (report.memory, report.load):
        for number, field in enumerate(part.DESCRIPTOR.fields):
            if field.message_type is None:
                setattr(part, field.name, offset + 100 * len(part.DESCRIPTOR.fields) + number)
    report.load.step_seconds.CopyFrom(Distribution(bounds=[1], counts=[2, 3], sum=4))
    report.load.step_rows.CopyFrom(Distribution(bounds=[5], counts=[6, 7], sum=8))
    return report


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    made = InMemoryMetricReader()
    yield made
    made.shutdown()


def collected(reader: InMemoryMetricReader) -> dict[tuple[str, str], Any]:
    """Values by name and type of token."""
    data = reader.get_metrics_data()
    assert data is not None
    found = {}
    for scope in data.resource_metrics[0].scope_metrics:
        for metric in scope.metrics:
            for point in metric.data.data_points:
                assert isinstance(point, NumberDataPoint)
                kind = (point.attributes or {}).get(names.GEN_AI_TOKEN_TYPE, "")
                found[metric.name, str(kind)] = point.value
    return found


def test_every_number_of_a_report_is_a_metric() -> None:
    report = a_report()
    numbers = {
        getattr(part, field.name)
        for part in (report.memory, report.load)
        for field in part.DESCRIPTOR.fields
        if field.message_type is None and field.name not in LEFT_OUT
    }
    assert {figure.read(report) for figure in FIGURES} == numbers
    assert [spread.read(report).sum for spread in SPREADS] == [4, 8]


def test_figures_are_read_when_they_are_exported(reader: InMemoryMetricReader) -> None:
    meters = MeterProvider([reader], shutdown_on_exit=False)
    report = a_report()
    observe(meters.get_meter("test"), lambda: report)
    first = collected(reader)
    assert first == {(f.spec.name, f.token_type): f.read(report) for f in FIGURES}
    report = a_report(offset=7)
    assert collected(reader) == {key: value + 7 for key, value in first.items()}


def test_a_collection_asks_for_one_report(reader: InMemoryMetricReader) -> None:
    meters = MeterProvider([reader], shutdown_on_exit=False)
    reports = iter([a_report(), a_report(offset=7)])
    observe(meters.get_meter("test"), lambda: next(reports))
    first = collected(reader)
    assert collected(reader) == {key: value + 7 for key, value in first.items()}
    assert next(reports, None) is None
