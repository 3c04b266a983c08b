"""The transitions of a runner's life, on a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.host.handover import Failed, Listening, Loading, Ready
from headrace_server.runners.lifecycle import (
    Died,
    Event,
    Health,
    Life,
    Limits,
    State,
    Stopping,
    advance,
    begin,
)

LIMITS = Limits(start=10, load=20, stalled=30)
LISTENING = Listening("unix:/r", 1, "sha256:ab")
EVENTS: list[Event] = [
    LISTENING,
    Loading(0.5),
    Ready(),
    Failed("LOAD_FAILED", "no"),
    Health(True),
    Health(False),
    Stopping(),
    Died(),
]


def test_an_ordinary_life() -> None:
    life = begin(100, LIMITS)
    seen = [(life.state, life.fraction, life.deadline)]
    events: list[Event] = [
        LISTENING,
        Health(False),
        Loading(0.5),
        Ready(),
        Health(True),
        Health(False),
        Health(False),
        Health(True),
        Stopping(),
        Died(),
    ]
    for now, event in enumerate(events, start=101):
        after = advance(life, event, now, LIMITS)
        if after is not life:
            seen.append((after.state, after.fraction, after.deadline))
        life = after
    assert seen == [
        (State.STARTING, 0.0, 110),
        (State.LOADING, 0.0, 121),
        (State.LOADING, 0.5, 123),
        (State.SERVING, 1.0, None),
        (State.STALLED, 1.0, 136),  # not put off by the second sign of it
        (State.SERVING, 1.0, None),
        (State.STOPPING, 1.0, None),
        (State.DEAD, 1.0, None),
    ]


def test_progress_never_falls_and_only_progress_buys_time() -> None:
    life = Life(State.LOADING, fraction=0.5, deadline=20)
    assert advance(life, Loading(0.4), 10, LIMITS) is life
    assert advance(life, Loading(0.5), 10, LIMITS) is life
    assert advance(life, Loading(0.6), 10, LIMITS) == Life(State.LOADING, 0.6, 30)


@pytest.mark.parametrize("state", [State.STARTING, State.LOADING, State.STALLED])
def test_every_state_with_a_deadline_says_what_was_missed(state: State) -> None:
    assert Life(state).overdue.startswith("it")


@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(0, 100)), max_size=30))
def test_no_way_back_from_stopping_and_death(steps: list[tuple[Event, float]]) -> None:
    life, now, stopping, died = begin(0, LIMITS), 0.0, False, False
    for event, wait in steps:
        now += wait
        life = advance(life, event, now, LIMITS)
        died = died or isinstance(event, Died)
        stopping = stopping or isinstance(event, Stopping)
        assert (life.state is State.DEAD) == died
        if stopping and not died:
            assert life.state is State.STOPPING
        # What may get stuck has a deadline; nothing else has.
        waiting = life.state in (State.STARTING, State.LOADING, State.STALLED)
        assert (life.deadline is not None) == waiting
