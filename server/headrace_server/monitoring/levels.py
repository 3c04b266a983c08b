"""The scheduler's levels: how many run and wait, who is loaded, what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from headrace.telemetry import names
from headrace_server.measures import of_model
from headrace_server.scheduling.state import Phase, State


def observe(state: Callable[[], State], shortage: Callable[[], int]) -> None:
    """Have the levels exported, each read when it is.

    All are called on the exporter's thread. `shortage`: bytes that the machine is short of.
    """
    meter = metrics.get_meter("headrace.controller")

    def each(levels: Callable[[State], Mapping[str, int]]) -> names.Observe:
        def callback(_: CallbackOptions) -> Iterable[Observation]:
            found = levels(state())
            return [Observation(value, of_model(model)) for model, value in found.items()]

        return callback

    def one(level: Callable[[], int]) -> names.Observe:
        return lambda _: [Observation(level())]

    names.RUNNING.observe(meter, each(running))
    names.WAITING.observe(meter, each(waiting))
    names.MEMORY_HELD.observe(meter, each(held))
    names.CIRCUITS_OPEN.observe(meter, each(open_circuits))
    names.RUNNERS.observe(
        meter,
        lambda _: [
            Observation(count, {**of_model(model), names.HEADRACE_RUNNER_STATE: phase.value})
            for (model, phase), count in runners(state()).items()
        ],
    )
    names.QUEUE_LIMIT.observe(meter, one(lambda: state().limits.queue_total))
    names.MEMORY_LIMIT.observe(meter, one(lambda: state().limits.memory))
    names.MEMORY_SHORTAGE.observe(meter, one(shortage))


def running(state: State) -> Mapping[str, int]:
    """Calls that have a runner, by model."""
    return _summed((slot.name, len(slot.leases)) for slot in state.slots.values())


def waiting(state: State) -> Mapping[str, int]:
    """Calls that wait for a runner, by model; 0 for those that have runners and no queue."""
    return {slot.name: 0 for slot in state.slots.values()} | state.queues()


def held(state: State) -> Mapping[str, int]:
    """Bytes that runners are counted with, by model."""
    return _summed((slot.name, slot.memory) for slot in state.slots.values())


def open_circuits(state: State) -> Mapping[str, int]:
    """1 for each model that is not loaded since it crashed too often, 0 for others in use.

    Such a one is open until a load succeeds, whether or not one may be tried by now.
    """
    called = state.names()
    return _summed(
        [
            *((slot.name, 0) for slot in state.slots.values()),
            *((called[key], int(crashes.open)) for key, crashes in state.crashes.items()),
        ]
    )


def runners(state: State) -> Mapping[tuple[str, Phase], int]:
    """Runners by model and phase."""
    return Counter((slot.name, slot.phase) for slot in state.slots.values())


def _summed(pairs: Iterable[tuple[str, int]]) -> Mapping[str, int]:
    total: dict[str, int] = {}
    for model, value in pairs:
        total[model] = total.get(model, 0) + value
    return total
