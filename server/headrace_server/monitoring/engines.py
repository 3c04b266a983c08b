"""The figures of all runners, by runner, from what each reports when it is asked.

Runners come and go, and each has a name of its own. So nothing is kept of them here: who is gone is
gone from the next collection on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from headrace.telemetry import names
from headrace.telemetry.engine import FIGURES, SPREADS, Figure, Spread
from headrace.telemetry.names import CounterSpec
from headrace.v1.runner_pb2 import Distribution, Runner
from headrace_server.monitoring.naming import label, unit_of

_IDENTITY = (label(names.HEADRACE_MODEL_NAME), label(names.HEADRACE_RUNNER_ID))


@dataclass(frozen=True)
class Report:
    """What is known of one runner."""

    id: str
    model: str
    memory: int
    """Bytes that it is counted with."""
    runner: Runner | None
    """What it says itself; None while it loads, or does not answer."""

    @property
    def identity(self) -> tuple[str, str]:
        return self.model, self.id


class Engines(Collector):
    """Asks for reports at each collection."""

    def __init__(self, reports: Callable[[], Sequence[Report]]) -> None:
        self._reports = reports

    def collect(self) -> Iterable[Metric]:
        """All figures, none of which is kept."""
        reports = self._reports()
        spec = names.RUNNER_MEMORY
        memory = GaugeMetricFamily(
            label(spec.name), spec.description, labels=_IDENTITY, unit=unit_of(spec.unit)
        )
        for report in reports:
            memory.add_metric(report.identity, report.memory)
        yield memory
        said = [(r.identity, r.runner) for r in reports if r.runner is not None]
        yield from _figures(said)
        yield from (_spread(spread, said) for spread in SPREADS)


_Said = Sequence[tuple[tuple[str, str], Runner]]


def _figures(said: _Said) -> Iterator[Metric]:
    for spec in dict.fromkeys(figure.spec for figure in FIGURES):
        alike: list[Figure] = [figure for figure in FIGURES if figure.spec is spec]
        family = CounterMetricFamily if isinstance(spec, CounterSpec) else GaugeMetricFamily
        metric = family(
            label(spec.name),
            spec.description,
            labels=(*_IDENTITY, *map(label, alike[0].attributes)),
            unit=unit_of(spec.unit),
        )
        for identity, runner in said:
            for figure in alike:
                metric.add_metric((*identity, *figure.attributes.values()), figure.read(runner))
        yield metric


def _spread(spread: Spread, said: _Said) -> Metric:
    spec = spread.spec
    metric = HistogramMetricFamily(
        label(spec.name), spec.description, labels=_IDENTITY, unit=unit_of(spec.unit)
    )
    for identity, runner in said:
        read = spread.read(runner)
        if read.counts:
            metric.add_metric(identity, _buckets(read), read.sum)
    return metric


def _buckets(read: Distribution) -> list[tuple[str, float]]:
    bounds = [*map(str, read.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(read.counts)), strict=True))
