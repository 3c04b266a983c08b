"""What is measured of waits, loads and runners, with runners that are fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    NumberDataPoint,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from headrace.errors import Draining, LoadFailed, ModelCorrupt
from headrace.telemetry import names
from headrace.telemetry.names import CounterSpec, HistogramSpec
from headrace_server import measures
from tests.unit.control.fakes import FakeModel
from tests.unit.control.stages import Stage

MEASURED: dict[str, CounterSpec | HistogramSpec] = {
    "_queue_duration": names.QUEUE_DURATION,
    "_refusals": names.REFUSALS,
    "_load_duration": names.LOAD_DURATION,
    "_unloads": names.UNLOADS,
    "_crashes": names.CRASHES,
}
_KINDS = (
    names.ERROR_TYPE,
    names.HEADRACE_UNLOAD_REASON,
    names.HEADRACE_RUNNER_CAUSE_OF_DEATH,
)
TRACE = 0xABC
SPAN = NonRecordingSpan(
    SpanContext(TRACE, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
)


class Measured:
    """What has been recorded so far."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader

    def of(self, spec: CounterSpec | HistogramSpec) -> dict[str, int]:
        """How often, by the kind of it; "" for what has none, and nothing that did not happen."""
        return {
            next((str(value) for key, value in tags.items() if key in _KINDS), ""): count
            for point in self._points(spec)
            if (tags := dict(point.attributes or {})).get(names.HEADRACE_MODEL_NAME)
            == FakeModel().name
            if (count := _count(point))
        }

    def traces(self, spec: HistogramSpec) -> set[int | None]:
        """Of the exemplars."""
        return {exemplar.trace_id for point in self._points(spec) for exemplar in point.exemplars}

    def _points(
        self, spec: CounterSpec | HistogramSpec
    ) -> Iterator[HistogramDataPoint | NumberDataPoint]:
        data = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == spec.name:
                        for point in metric.data.data_points:
                            assert isinstance(point, HistogramDataPoint | NumberDataPoint)
                            yield point


def _count(point: HistogramDataPoint | NumberDataPoint) -> int:
    return point.count if isinstance(point, HistogramDataPoint) else int(point.value)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[Measured]:
    reader = InMemoryMetricReader()
    meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("test")
    for name, spec in MEASURED.items():
        monkeypatch.setattr(measures, name, spec.create(meter))
    yield Measured(reader)
    reader.shutdown()


@pytest_asyncio.fixture
async def stage(tmp_path: Path, measured: Measured) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    await stage.scheduler.close()


async def test_a_wait_is_measured_whatever_it_is_for_and_leads_to_its_trace(
    stage: Stage, measured: Measured
) -> None:
    with stage.scheduler.ask(FakeModel()) as ticket:
        await ticket.granted()
    assert measured.of(names.QUEUE_DURATION) == {"": 1}
    assert measured.of(names.REFUSALS) == {}
    with trace.use_span(SPAN):
        ticket = stage.scheduler.ask(FakeModel())
    with ticket:
        await ticket.granted()
    assert measured.traces(names.QUEUE_DURATION) == {TRACE}


async def test_who_leaves_while_he_waits_has_waited_too(stage: Stage, measured: Measured) -> None:
    stage.launcher.hold = True
    with stage.scheduler.ask(FakeModel()) as ticket:
        waiting = asyncio.create_task(ticket.granted())
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
    assert measured.of(names.QUEUE_DURATION) == {"cancelled": 1}
    assert measured.of(names.REFUSALS) == {}


async def test_a_refusal_is_counted_and_is_no_wait(stage: Stage, measured: Measured) -> None:
    stage.scheduler.drain()
    with stage.scheduler.ask(FakeModel()) as ticket, pytest.raises(Draining):
        await ticket.granted()
    assert measured.of(names.REFUSALS) == {"DRAINING": 1}
    assert measured.of(names.QUEUE_DURATION) == {}


async def test_a_load_without_a_process_is_no_crash(stage: Stage, measured: Measured) -> None:
    async def refuse() -> None:
        raise ModelCorrupt("a file is missing", file="x")

    stage.launcher.before = refuse
    with stage.scheduler.ask(FakeModel()) as ticket, pytest.raises(ModelCorrupt):
        await ticket.granted()
    await stage.scheduler.drained()
    assert measured.of(names.LOAD_DURATION) == {"MODEL_CORRUPT": 1}
    assert measured.of(names.CRASHES) == {}


async def test_a_process_that_could_not_be_made_is_none_either(
    stage: Stage, measured: Measured
) -> None:
    stage.launcher.hold = True
    with stage.scheduler.ask(FakeModel()) as ticket:
        runner = await stage.launcher.launched.get()
        runner.pid = None
        await runner.die("LOAD_FAILED")
        with pytest.raises(LoadFailed):
            await ticket.granted()
    await stage.scheduler.drained()
    assert measured.of(names.LOAD_DURATION) == {"LOAD_FAILED": 1}
    assert measured.of(names.CRASHES) == {}


async def test_a_process_that_dies_while_it_loads_is_one(stage: Stage, measured: Measured) -> None:
    stage.launcher.hold = True
    with stage.scheduler.ask(FakeModel()) as ticket:
        for _ in range(3):
            await (await stage.launcher.launched.get()).die("NATIVE_ABORT")
        with pytest.raises(LoadFailed):
            await ticket.granted()
    await stage.scheduler.drained()
    assert measured.of(names.LOAD_DURATION) == {"NATIVE_ABORT": 3}
    assert measured.of(names.CRASHES) == {"NATIVE_ABORT": 3}


async def test_one_that_was_told_to_go_has_not_failed(stage: Stage, measured: Measured) -> None:
    with stage.scheduler.ask(FakeModel()) as ticket:
        await ticket.granted()
    await stage.scheduler.unload(FakeModel().key)
    assert measured.of(names.UNLOADS) == {"unloaded": 1}
    assert measured.of(names.LOAD_DURATION) == {"": 1}
    assert measured.of(names.CRASHES) == {}
