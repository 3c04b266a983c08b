"""A runner's report as metrics: one table for the runner, which exports them itself, and for its
controller, which shows those of all its runners."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from headrace.telemetry import names
from headrace.telemetry.names import CounterSpec, HistogramSpec, LevelSpec
from headrace.v1.runner_pb2 import Distribution, Runner

Attributes = dict[str, str]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of a report, or one for each type of token."""

    spec: CounterSpec | LevelSpec
    read: Callable[[Runner], int]
    token_type: str = ""

    @property
    def attributes(self) -> Attributes:
        """What sets it apart from others of its name."""
        return {names.GEN_AI_TOKEN_TYPE: self.token_type} if self.token_type else {}


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution of a report. The runner records it as it happens, so it is not observed."""

    spec: HistogramSpec
    read: Callable[[Runner], Distribution]


FIGURES: Final = (
    Figure(names.ENGINE_RUNNING, lambda runner: runner.load.running),
    Figure(names.ENGINE_WAITING, lambda runner: runner.load.waiting),
    Figure(names.ENGINE_REQUESTS, lambda runner: runner.load.requests_total),
    Figure(
        names.ENGINE_TOKENS,
        lambda runner: runner.load.prompt_tokens_total,
        names.TOKEN_TYPE_INPUT,
    ),
    Figure(
        names.ENGINE_TOKENS,
        lambda runner: runner.load.output_tokens_total,
        names.TOKEN_TYPE_OUTPUT,
    ),
    Figure(names.ENGINE_PREFIX_CACHE_TOKENS, lambda runner: runner.load.cached_tokens_total),
    Figure(names.ENGINE_PREFIX_CACHE_LOOKUPS, lambda runner: runner.load.prompts_total),
    Figure(names.ENGINE_PREFIX_CACHE_HITS, lambda runner: runner.load.cached_prompts_total),
    Figure(names.ENGINE_PREFIX_CACHE_SIZE, lambda runner: runner.memory.prefix_cache_bytes),
    Figure(names.ENGINE_KV_SIZE, lambda runner: runner.memory.kv_bytes),
    Figure(names.ENGINE_KV_RESERVED, lambda runner: runner.memory.kv_reserved_bytes),
    Figure(names.ENGINE_KV_LIMIT, lambda runner: runner.memory.kv_limit_bytes),
    Figure(names.ENGINE_MEMORY_WEIGHTS, lambda runner: runner.memory.weights_bytes),
    Figure(names.ENGINE_MEMORY_ADAPTERS, lambda runner: runner.memory.adapters_bytes),
    Figure(names.ENGINE_MEMORY_ACTIVE, lambda runner: runner.memory.active_bytes),
    Figure(names.ENGINE_MEMORY_REUSABLE, lambda runner: runner.memory.cache_bytes),
    Figure(names.ENGINE_MEMORY_RESIDENT, lambda runner: runner.memory.resident_bytes),
)
SPREADS: Final = (
    Spread(names.ENGINE_STEP_DURATION, lambda runner: runner.load.step_seconds),
    Spread(names.ENGINE_BATCH_SIZE, lambda runner: runner.load.step_rows),
)


def observe(meter: Meter, report: Callable[[], Runner]) -> None:
    """Have a runner's figures exported, each read when it is.

    Whose they are is told by the process's resource. `report` is called on the exporter's thread,
    once for all figures of a collection.
    """
    collection = _Collection(report)

    def observer(spec: CounterSpec | LevelSpec) -> names.Observe:
        figures = [figure for figure in FIGURES if figure.spec is spec]

        def callback(_: CallbackOptions) -> Iterator[Observation]:
            now = collection.report_for(spec)
            for figure in figures:
                yield Observation(figure.read(now), figure.attributes)

        return callback

    for spec in dict.fromkeys(figure.spec for figure in FIGURES):
        spec.observe(meter, observer(spec))


class _Collection:
    """What all figures of a collection are read from.

    OpenTelemetry asks for each metric by itself and does not say when a collection begins: one does
    when a metric is asked for again.
    """

    def __init__(self, report: Callable[[], Runner]) -> None:
        self._report = report
        self._asked: set[str] = set()
        self._last: Runner | None = None

    def report_for(self, spec: CounterSpec | LevelSpec) -> Runner:
        if self._last is None or spec.name in self._asked:
            self._asked.clear()
            self._last = self._report()
        self._asked.add(spec.name)
        return self._last
