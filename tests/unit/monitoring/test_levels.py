"""Levels, as they follow from what the scheduler knows."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from headrace_server.monitoring import levels
from headrace_server.scheduling.state import Asked, Crashes, Limits, Phase, Policy, Slot, State

NAMES = {"k1": "one:1", "k2": "two:2", "k3": "three:3"}


def slot(runner: str, key: str, memory: int, **fields: object) -> Slot:
    made = Slot(runner, key, memory, Policy(), None, started_at=0.0, idle_since=0.0)
    return replace(made, **fields)  # type: ignore[arg-type]


STATE = State(
    Limits(memory=1000),
    slots=MappingProxyType(
        {
            "r1": slot("r1", "k1", 100, phase=Phase.SERVING, leases=frozenset({1, 2})),
            "r2": slot("r2", "k1", 50, phase=Phase.LOADING),
            "r3": slot("r3", "k2", 7, phase=Phase.SERVING, leases=frozenset({3})),
        }
    ),
    waiting=(Asked(4, "k1", 100), Asked(5, "k3", 100), Asked(6, "k3", 100)),
    crashes=MappingProxyType({"k2": Crashes(open=True), "k3": Crashes()}),
)


def test_levels_are_summed_by_model() -> None:
    name = NAMES.__getitem__
    assert levels.running(STATE, name) == {"one:1": 2, "two:2": 1}
    assert levels.waiting(STATE, name) == {"one:1": 1, "two:2": 0, "three:3": 2}
    assert levels.held(STATE, name) == {"one:1": 150, "two:2": 7}
    assert levels.open_circuits(STATE, name) == {"one:1": 0, "two:2": 1, "three:3": 0}
    assert levels.runners(STATE, name) == {
        ("one:1", Phase.SERVING): 1,
        ("one:1", Phase.LOADING): 1,
        ("two:2", Phase.SERVING): 1,
    }
