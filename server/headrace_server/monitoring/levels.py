"""The scheduler's levels: how many run and wait, who is loaded, what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from headrace.telemetry import names
from headrace_server.measures import of_model
from headrace_server.scheduling.state import Phase, State

Name = Callable[[str], str]
"""Gives the name of the model of a key."""


def observe(state: Callable[[], State], name_of: Name, shortage: Callable[[], int]) -> None:
    """Have the levels exported, each read when it is.

    All are called on the exporter's thread. `shortage`: bytes that the machine is short of.
    """
    meter = metrics.get_meter("headrace.controller")

    def each(levels: Callable[[State, Name], Mapping[str, int]]) -> names.Observe:
        def callback(_: CallbackOptions) -> Iterable[Observation]:
            found = levels(state(), name_of)
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
            for (model, phase), count in runners(state(), name_of).items()
        ],
    )
    names.QUEUE_LIMIT.observe(meter, one(lambda: state().limits.queue_total))
    names.MEMORY_LIMIT.observe(meter, one(lambda: state().limits.memory))
    names.MEMORY_SHORTAGE.observe(meter, one(shortage))


def running(state: State, name_of: Name) -> Mapping[str, int]:
    """Calls that have a runner, by model."""
    return _summed((name_of(slot.key), len(slot.leases)) for slot in state.slots.values())


def waiting(state: State, name_of: Name) -> Mapping[str, int]:
    """Calls that wait for a runner, by model; 0 for those that have runners and no queue."""
    return _summed(
        [
            *((name_of(slot.key), 0) for slot in state.slots.values()),
            *((name_of(asked.key), 1) for asked in state.waiting),
        ]
    )


def held(state: State, name_of: Name) -> Mapping[str, int]:
    """Bytes that runners are counted with, by model."""
    return _summed((name_of(slot.key), slot.memory) for slot in state.slots.values())


def open_circuits(state: State, name_of: Name) -> Mapping[str, int]:
    """1 for each model that is not loaded since it crashed too often, 0 for others in use.

    Such a one is open until a load succeeds, whether or not one may be tried by now.
    """
    return _summed(
        [
            *((name_of(slot.key), 0) for slot in state.slots.values()),
            *((name_of(key), int(crashes.open)) for key, crashes in state.crashes.items()),
        ]
    )


def runners(state: State, name_of: Name) -> Mapping[tuple[str, Phase], int]:
    """Runners by model and phase."""
    return Counter((name_of(slot.key), slot.phase) for slot in state.slots.values())


def _summed(pairs: Iterable[tuple[str, int]]) -> Mapping[str, int]:
    total: dict[str, int] = {}
    for model, value in pairs:
        total[model] = total.get(model, 0) + value
    return total
