"""The transitions of a runner's life, on a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.host.handover import Draining, Failed, Listening, Loading, Ready
from headrace_server.runners.lifecycle import (
    Died,
    Event,
    Health,
    Life,
    Limits,
    Silent,
    State,
    Stopping,
    advance,
    begin,
    overslept,
)

LIMITS = Limits(start=10, load=20, stalled=30, agree=5, leave=3)
LISTENING = Listening("unix:/r", 1, "sha256:ab")
EVENTS: list[Event] = [
    LISTENING,
    Loading(0.5),
    Ready(),
    Draining(4.0),
    Failed("LOAD_FAILED", "no"),
    Health(True),
    Health(False),
    Silent(),
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
        (State.LOADING, 0.5, 109),  # ready, it says; its health has to agree
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


def test_a_runner_that_says_it_is_ready_has_to_be_so_soon() -> None:
    life = advance(Life(State.LOADING, 0.9, 20), Ready(), 10, LIMITS)
    assert (life.state, life.deadline) == (State.LOADING, 15)
    assert "health" in life.owes
    assert advance(life, Ready(), 12, LIMITS) is life
    assert advance(life, Health(False), 12, LIMITS) is life
    assert advance(life, Health(True), 12, LIMITS) == Life(State.SERVING, 1.0)


@pytest.mark.parametrize("state", [State.STARTING, State.LOADING])
def test_a_runner_that_stops_reporting_before_it_serves_has_little_time(state: State) -> None:
    life = advance(Life(state, deadline=100), Silent(), 10, LIMITS)
    assert (life.state, life.deadline) == (state, 13)
    assert "report pipe" in life.owes
    # It may be about to go for lack of time anyway.
    assert advance(Life(state, deadline=11), Silent(), 10, LIMITS).deadline == 11


@pytest.mark.parametrize("state", [State.SERVING, State.STALLED])
def test_a_runner_that_served_may_stop_reporting(state: State) -> None:
    life = Life(state, 1.0)
    assert advance(life, Silent(), 10, LIMITS) is life


@pytest.mark.parametrize(
    "state", [State.STARTING, State.LOADING, State.SERVING, State.STALLED], ids=lambda s: s.value
)
def test_a_runner_that_fails_has_little_time_to_go(state: State) -> None:
    life = advance(Life(state), Failed("LOAD_FAILED", "no"), 10, LIMITS)
    assert (life.state, life.deadline) == (State.FAILING, 13)
    assert advance(life, Health(True), 11, LIMITS) is life


@pytest.mark.parametrize("state", [State.LOADING, State.SERVING, State.STALLED])
def test_a_runner_that_drains_has_the_grace_that_it_tells(state: State) -> None:
    life = advance(Life(state, 1.0), Draining(40), 10, LIMITS)
    assert (life.state, life.deadline) == (State.DRAINING, 53)
    assert advance(life, Health(False), 11, LIMITS) is life
    assert advance(life, Health(True), 11, LIMITS) is life
    # Told again, to hurry.
    assert advance(life, Draining(0), 12, LIMITS).deadline == 15


def test_one_who_wakes_long_after_a_deadline_gives_more_time() -> None:
    life = Life(State.LOADING, 0.5, deadline=100)
    assert overslept(life, 100) is None
    assert overslept(life, 101) is None
    more = overslept(life, 3600)
    assert more is not None
    assert more.deadline is not None
    assert more.deadline > 3600
    assert more.state is State.LOADING
    assert overslept(Life(State.SERVING), 3600) is None


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
        waits = life.state not in (State.SERVING, State.STOPPING, State.DEAD)
        assert (life.deadline is not None) == waits
        if waits:
            assert life.owes.startswith("it")
