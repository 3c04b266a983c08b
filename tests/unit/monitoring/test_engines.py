"""What runners report, by runner."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from headrace.telemetry.engine import FIGURES, SPREADS
from headrace.v1.runner_pb2 import Distribution, Runner, RunnerLoad, RunnerMemory
from headrace_server.monitoring.engines import Engines, Report
from headrace_server.monitoring.naming import series

BUSY = Runner(
    memory=RunnerMemory(kv_bytes=11, weights_bytes=12),
    load=RunnerLoad(
        running=3,
        prompt_tokens_total=5,
        output_tokens_total=7,
        step_seconds=Distribution(bounds=[0.5, 1.0], counts=[1, 2, 3], sum=8.5),
        step_rows=Distribution(bounds=[1], counts=[6, 0], sum=6),
    ),
)
Found = dict[str, dict[tuple[str, ...], float]]


def scrape(*reports: Report) -> Found:
    """Values by the series' name, then by runner and what else tells series apart."""
    registry = CollectorRegistry()

    def ask() -> Sequence[Report]:
        return reports

    registry.register(Engines(ask))
    found: Found = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("headrace_model_name") == "m:1"
            runner = labels.pop("headrace_runner_id")
            found.setdefault(sample.name, {})[runner, *labels.values()] = sample.value
    return found


def test_every_figure_is_there_for_each_runner() -> None:
    found = scrape(Report("r1", "m:1", 99, BUSY), Report("r2", "m:1", 98, Runner(load=BUSY.load)))
    specs = [*(figure.spec for figure in FIGURES), *(spread.spec for spread in SPREADS)]
    assert found.keys() == {
        "headrace_runner_memory_bytes",
        *(name for spec in specs for name in series(spec)),
    }
    for values in found.values():
        assert {key[0] for key in values} == {"r1", "r2"}
    assert found["headrace_runner_memory_bytes"] == {("r1",): 99, ("r2",): 98}
    assert found["headrace_engine_running"] == {("r1",): 3, ("r2",): 3}
    assert found["headrace_engine_kv_size_bytes"] == {("r1",): 11, ("r2",): 0}
    tokens = found["headrace_engine_tokens_total"]
    assert (tokens["r1", "input"], tokens["r1", "output"]) == (5, 7)


def test_classes_of_a_distribution_are_summed_as_prometheus_has_them() -> None:
    found = scrape(Report("r1", "m:1", 99, BUSY))
    buckets = found["headrace_engine_step_duration_seconds_bucket"]
    assert buckets == {("r1", "0.5"): 1, ("r1", "1.0"): 3, ("r1", "+Inf"): 6}
    assert found["headrace_engine_step_duration_seconds_count"] == {("r1",): 6}
    assert found["headrace_engine_step_duration_seconds_sum"] == {("r1",): 8.5}


def test_a_runner_that_does_not_answer_is_still_counted() -> None:
    found = scrape(Report("r1", "m:1", 99, None))
    assert found == {"headrace_runner_memory_bytes": {("r1",): 99}}


def test_no_runner_is_no_error() -> None:
    assert scrape() == {}
