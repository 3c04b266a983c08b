"""Several runners of one model: when there is another, who goes where, and who goes first."""

from typing import Any

import pytest

from headrace.errors import CircuitOpen, LoadFailed
from headrace_server.scheduling import routing
from headrace_server.scheduling.events import (
    Exited,
    Grant,
    Left,
    Loaded,
    Policed,
    Start,
    Stop,
    Unload,
)
from headrace_server.scheduling.state import FOREVER, Phase, Policy, Slot, Why
from tests.unit.control.cores import Desk, errors

TWO = Policy(concurrency=1, replicas=2)


def two_runners(**limits: int | float) -> Desk:
    """Two runners of "a" of 40 bytes each, both busy: r1 with request 1, r2 with request 2."""
    desk = Desk(TWO, **limits)
    desk.load("a")
    assert desk.ask("a") == (Start("r2", "a"),)
    assert desk.tell(Loaded("r2")) == (Grant(2, "r2"),)
    return desk


def test_another_runner_is_started_when_all_are_full_and_never_more_than_there_may_be() -> None:
    desk = two_runners(memory=1000)
    assert desk.ask("a") == ()
    assert desk.tell(Left(1)) == (Grant(3, "r1"),)


def test_a_load_that_is_under_way_is_waited_for_before_another() -> None:
    desk = Desk(Policy(concurrency=1, replicas=3), memory=1000)
    desk.ask("a")
    assert desk.ask("a") == ()
    assert desk.tell(Loaded("r1")) == (Grant(1, "r1"), Start("r2", "a"))


def test_another_runner_makes_nobody_go() -> None:
    desk = Desk(TWO)
    desk.load("b")
    desk.tell(Left(1))
    desk.load("a")
    assert desk.ask("a") == ()
    assert desk.phase("b") is Phase.SERVING


def test_another_runner_takes_nothing_that_is_kept_for_a_load() -> None:
    desk = Desk(TWO, memory=100)
    desk.load("b", needs=30)
    desk.load("a", needs=30)
    desk.tell(Left(1))
    assert desk.ask("c", needs=70) == (Stop("r1", Why.EVICTED),)
    assert desk.ask("a", needs=30) == ()
    assert desk.exited("r1") == (Start("r3", "c"),)


def test_the_further_runner_is_evicted_first_though_the_other_is_idle_for_longer() -> None:
    desk = two_runners()
    desk.tell(Left(1))
    desk.now += 1
    desk.tell(Left(2))
    assert desk.ask("b") == (Stop("r2", Why.EVICTED),)


def test_the_first_runner_alone_is_pinned() -> None:
    desk = Desk(Policy(concurrency=1, replicas=2, pinned=True, keep_alive=5.0))
    desk.load("a", keep_alive=0.0)
    desk.load("a", keep_alive=FOREVER)
    desk.tell(Left(1))
    desk.tell(Left(2))
    assert desk.wait(5.0) == (Stop("r2", Why.KEEP_ALIVE),)
    desk.exited("r2")
    assert desk.wait(1e9) == ()
    assert desk.tell(Unload("a")) == (Stop("r1", Why.UNLOADED),)


def test_the_further_runner_takes_the_first_one_s_place_when_that_is_gone() -> None:
    desk = Desk(Policy(concurrency=1, replicas=2, pinned=True))
    desk.load("a")
    desk.load("a")
    assert desk.slot("r2").extra
    desk.exited("r1")
    assert not desk.slot("r2").extra
    desk.tell(Left(2))
    assert desk.wait(1e9) == ()


def test_an_unload_is_of_all_runners() -> None:
    desk = two_runners()
    desk.tell(Left(1))
    assert desk.tell(Unload("a")) == (Stop("r1", Why.UNLOADED),)
    assert desk.tell(Left(2)) == (Stop("r2", Why.UNLOADED),)


@pytest.mark.parametrize("cause", ["LOAD_FAILED", "OUT_OF_MEMORY", "NATIVE_ABORT"])
def test_who_waits_beside_a_runner_is_not_told_of_a_further_one_s_failure(cause: str) -> None:
    desk = Desk(TWO, max_crashes=2)
    desk.load("a")
    desk.ask("a")
    for runner in ("r2", "r3"):
        assert desk.state.slots[runner].phase is Phase.LOADING
        failed = Exited(runner, cause, LoadFailed("it failed", cause=cause))
        assert errors(desk.tell(failed)) == []
    assert errors(desk.ask("a")) == [], "its circuit is open, but a runner serves"
    assert desk.tell(Left(1)) == (Grant(2, "r1"),)
    desk.exited("r1")
    assert errors(desk.ask("a")) == [(4, CircuitOpen)]


def test_a_smaller_number_takes_effect_when_one_is_idle() -> None:
    desk = two_runners()
    assert desk.tell(Policed("a", Policy(concurrency=1))) == ()
    assert desk.tell(Left(2)) == (Stop("r2", Why.SURPLUS),)


def test_requests_go_to_the_least_loaded() -> None:
    desk = Desk(Policy(concurrency=2, replicas=2))
    desk.load("a")
    desk.ask("a")
    desk.ask("a")
    desk.tell(Loaded("r2"))
    desk.tell(Left(1))
    desk.tell(Left(3))
    assert desk.ask("a") == (Grant(4, "r2"),)
    assert desk.ask("a") == (Grant(5, "r1"),)


def test_requests_go_where_their_beginning_was_served() -> None:
    desk = two_runners(memory=1000)
    desk.tell(Left(1))
    desk.tell(Left(2))
    assert desk.ask("a", prefixes=(1, 2)) == (Grant(3, "r1"),)
    assert desk.ask("a", prefixes=(7, 8)) == (Grant(4, "r2"),)
    desk.tell(Left(3))
    desk.tell(Left(4))
    assert desk.ask("a", prefixes=(7, 8, 9)) == (Grant(5, "r2"),)
    desk.tell(Left(5))
    assert desk.ask("a", prefixes=(1, 9)) == (Grant(6, "r1"),)


def slot(runner: str, load: int, **more: Any) -> Slot:
    policy = Policy(concurrency=16, replicas=2)
    leases = frozenset(range(load))
    return Slot(runner, "a", "a", 1, policy, 1.0, 0.0, 0.0, Phase.SERVING, leases, **more)


@pytest.mark.parametrize(("load", "chosen"), [(2, "known"), (3, "other")])
def test_a_beginning_does_not_lead_to_a_runner_that_is_clearly_more_loaded(
    load: int, chosen: str
) -> None:
    known, other = slot("known", load, served=((1, 2),)), slot("other", 0)
    assert routing.choose((other, known), (1, 2)).runner == chosen


def test_a_difference_that_is_small_in_proportion_does_not_count() -> None:
    known, other = slot("known", 14, served=((1, 2),)), slot("other", 10)
    assert routing.choose((other, known), (1, 2)).runner == "known"


def test_what_is_remembered_is_bounded_and_a_conversation_is_remembered_once() -> None:
    served: tuple[tuple[int, ...], ...] = ()
    for turn in range(1, 6):
        served = routing.remember(served, tuple(range(turn)))
    assert served == ((0, 1, 2, 3, 4),)
    for prompt in range(1000):
        served = routing.remember(served, (1000 + prompt,))
    assert len(served) == routing.REMEMBERED
    assert routing.matched(served, (1999, 5)) == 1
    assert routing.matched(served, (0, 1)) == 0
