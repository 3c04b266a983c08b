"""Levels, as they follow from what the scheduler knows."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from headrace_server.monitoring import levels
from headrace_server.scheduling.state import Asked, Crashes, Limits, Phase, Policy, Slot, State


def slot(runner: str, key: str, name: str, memory: int, **fields: object) -> Slot:
    made = Slot(runner, key, name, memory, Policy(), None, started_at=0.0, idle_since=0.0)
    return replace(made, **fields)  # type: ignore[arg-type]


STATE = State(
    Limits(memory=1000),
    slots=MappingProxyType(
        {
            "r1": slot("r1", "k1", "one:1", 100, phase=Phase.SERVING, leases=frozenset({1, 2})),
            "r2": slot("r2", "k1", "one:1", 50, phase=Phase.LOADING),
            "r3": slot("r3", "k2", "two:2", 7, phase=Phase.SERVING, leases=frozenset({3})),
        }
    ),
    waiting=(
        Asked(4, "k1", "alias:1", 100),
        Asked(5, "k3", "three:3", 100),
        Asked(6, "k3", "third:3", 100),
    ),
    crashes=MappingProxyType(
        {
            "k2": Crashes(open=True, name="second:2"),
            "k3": Crashes(name="third:3"),
            "k4": Crashes(open=True, name="four:4"),
        }
    ),
)


def test_levels_are_summed_by_model_whatever_name_is_asked_for() -> None:
    assert levels.running(STATE) == {"one:1": 2, "two:2": 1}
    assert levels.waiting(STATE) == {"one:1": 1, "two:2": 0, "three:3": 2}
    assert levels.held(STATE) == {"one:1": 150, "two:2": 7}
    assert levels.open_circuits(STATE) == {"one:1": 0, "two:2": 1, "three:3": 0, "four:4": 1}
    assert levels.runners(STATE) == {
        ("one:1", Phase.SERVING): 1,
        ("one:1", Phase.LOADING): 1,
        ("two:2", Phase.SERVING): 1,
    }
