"""The scheduling core's rules, one scenario a test, on a virtual clock."""

import math

import pytest

from headrace.errors import (
    CircuitOpen,
    DeadlineUnreachable,
    InsufficientMemory,
    LoadFailed,
    ModelTooLarge,
    QueueFull,
)
from headrace_server.scheduling.events import (
    Grant,
    Left,
    Loaded,
    Policed,
    Refuse,
    Start,
    Stop,
    Unload,
)
from headrace_server.scheduling.state import FOREVER, Phase, Policy, Why
from tests.unit.control.cores import Desk, errors


def test_callers_share_one_load_and_are_served_together() -> None:
    desk = Desk()
    assert desk.ask("a") == (Start("r1", "a"),)
    assert desk.ask("a") == ()
    assert desk.tell(Loaded("r1")) == (Grant(1, "r1"), Grant(2, "r1"))


def test_a1_a_full_queue_refuses_at_once_also_for_a_loaded_model() -> None:
    desk = Desk(Policy(concurrency=1), queue_per_model=1, queue_total=2)
    desk.ask("a")
    desk.tell(Loaded("r1"))
    assert desk.ask("a") == ()
    (refused,) = desk.ask("a")
    assert isinstance(refused, Refuse)
    assert isinstance(refused.error, QueueFull)
    assert refused.error.metadata["queue"] == "model"
    assert refused.error.retry_after
    desk.ask("b")
    (refused,) = desk.ask("c")
    assert isinstance(refused, Refuse)
    assert refused.error.metadata["queue"] == "controller"


def test_a2_a_waiter_that_leaves_starts_no_load() -> None:
    desk = Desk()
    desk.ask("a", needs=60)
    desk.tell(Loaded("r1"))
    assert desk.ask("b", needs=60) == ()
    assert desk.tell(Left(2)) == ()
    assert desk.tell(Left(1)) == ()
    assert desk.phase("b") is None
    assert desk.phase("a") is Phase.SERVING


def test_a3_one_caller_s_cancellation_does_not_end_the_load() -> None:
    desk = Desk()
    desk.ask("a")
    desk.ask("a")
    assert desk.tell(Left(1)) == ()
    assert desk.tell(Loaded("r1")) == (Grant(2, "r1"),)


def test_a4_an_idle_model_goes_and_a_busy_one_is_waited_for() -> None:
    desk = Desk()
    desk.ask("a")
    desk.tell(Loaded("r1"))
    desk.ask("b")
    desk.tell(Loaded("r2"))
    assert desk.ask("c") == ()
    assert desk.tell(Left(2)) == (Stop("r2", Why.EVICTED),)
    assert desk.exited("r2") == (Start("r3", "c"),)


def test_eviction_takes_the_least_recently_used_first() -> None:
    desk = Desk()
    for key, runner in (("a", "r1"), ("b", "r2")):
        desk.ask(key)
        desk.tell(Loaded(runner))
    desk.tell(Left(2))
    desk.now += 1
    desk.tell(Left(1))
    assert desk.ask("c") == (Stop("r2", Why.EVICTED),)


def test_nobody_is_evicted_where_it_would_not_be_enough() -> None:
    desk = Desk()
    for key, runner in (("a", "r1"), ("b", "r2")):
        desk.ask(key)
        desk.tell(Loaded(runner))
    desk.tell(Left(1))
    assert desk.ask("c", needs=90) == ()
    assert desk.phase("a") is Phase.SERVING


def test_a5_a_victim_is_not_revived() -> None:
    desk = Desk()
    desk.ask("a", needs=80)
    desk.tell(Loaded("r1"))
    desk.tell(Left(1))
    assert desk.ask("b", needs=80) == (Stop("r1", Why.EVICTED),)
    assert desk.ask("a", needs=80, keep_alive=FOREVER) == ()
    assert desk.exited("r1") == (Start("r2", "b"),)
    assert desk.tell(Loaded("r2")) == (Grant(2, "r2"),)
    assert desk.tell(Left(2)) == (Stop("r2", Why.EVICTED),)
    assert desk.exited("r2") == (Start("r3", "a"),)
    assert desk.tell(Loaded("r3")) == (Grant(3, "r3"),)


def test_a6_out_of_memory_evicts_and_retries_once() -> None:
    desk = Desk()
    desk.ask("a")
    desk.tell(Loaded("r1"))
    desk.tell(Left(1))
    desk.ask("b")
    assert desk.exited("r2", "OUT_OF_MEMORY") == (Stop("r1", Why.EVICTED),)
    assert desk.exited("r1") == (Start("r3", "b"),)
    assert errors(desk.exited("r3", "OUT_OF_MEMORY")) == [(2, LoadFailed)]


def test_a6_out_of_memory_alone_fails_at_once() -> None:
    desk = Desk()
    desk.ask("a")
    assert errors(desk.exited("r1", "OUT_OF_MEMORY")) == [(1, LoadFailed)]


def test_a7_what_can_never_fit_fails_at_once_and_evicts_nobody() -> None:
    desk = Desk()
    desk.ask("a")
    desk.tell(Loaded("r1"))
    desk.tell(Left(1))
    assert errors(desk.ask("b", needs=101)) == [(2, ModelTooLarge)]
    assert desk.phase("a") is Phase.SERVING


def test_what_pinned_models_leave_no_room_for_is_refused() -> None:
    desk = Desk()
    desk.ask("a", needs=60, keep_alive=FOREVER)
    desk.tell(Loaded("r1"))
    desk.tell(Left(1))
    assert errors(desk.ask("b", needs=60)) == [(2, InsufficientMemory)]


@pytest.mark.parametrize("keep_alive", [0.0, 5.0])
def test_a8_keep_alive_ends_after_the_request(keep_alive: float) -> None:
    desk = Desk()
    desk.ask("a", keep_alive=keep_alive)
    desk.tell(Loaded("r1"))
    assert desk.wait(10.0) == ()
    actions = desk.tell(Left(1))
    assert actions == ((Stop("r1", Why.KEEP_ALIVE),) if keep_alive == 0.0 else ())
    if keep_alive:
        assert desk.state.wake_at(desk.now) == desk.now + keep_alive
        assert desk.wait(keep_alive) == (Stop("r1", Why.KEEP_ALIVE),)


def test_a8_a_negative_keep_alive_stays_also_for_those_who_ask_for_nothing() -> None:
    desk = Desk()
    desk.ask("a", keep_alive=FOREVER)
    desk.tell(Loaded("r1"))
    desk.tell(Left(1))
    desk.ask("a")
    desk.tell(Left(2))
    assert desk.state.wake_at(desk.now) == math.inf
    assert desk.wait(1e9) == ()
    desk.ask("a", keep_alive=0.0)
    assert desk.tell(Left(3)) == (Stop("r1", Why.KEEP_ALIVE),)


def test_a_policy_holds_at_once_for_a_model_that_stayed_by_the_one_before() -> None:
    desk = Desk(Policy(keep_alive=FOREVER))
    desk.load("a")
    desk.tell(Left(1))
    assert desk.wait(1e6) == ()
    desk.policy = Policy(keep_alive=300.0)
    assert desk.tell(Policed("a", desk.policy)) == (Stop("r1", Why.KEEP_ALIVE),)


def test_a_keep_alive_that_came_with_a_policy_ends_with_it() -> None:
    desk = Desk(Policy(keep_alive=FOREVER))
    desk.load("a")
    desk.policy = Policy(keep_alive=300.0)
    desk.tell(Policed("a", desk.policy))
    desk.tell(Left(1))
    desk.ask("a")
    desk.tell(Left(2))
    assert desk.wait(300.0) == (Stop("r1", Why.KEEP_ALIVE),)


def test_a_keep_alive_of_a_request_outlasts_the_policy() -> None:
    desk = Desk()
    desk.load("a", keep_alive=FOREVER)
    desk.tell(Policed("a", Policy(keep_alive=0.0)))
    desk.tell(Left(1))
    assert desk.wait(1e6) == ()


def test_who_waits_already_is_served_by_the_new_policy() -> None:
    desk = Desk()
    desk.load("b", needs=80)
    desk.ask("a")
    desk.tell(Policed("a", Policy(pinned=True)))
    desk.tell(Unload("b"))
    desk.tell(Left(1))
    desk.exited("r1")
    assert desk.slot("r2").policy.pinned


def test_a9_a_deadline_that_is_over_starts_no_load() -> None:
    desk = Desk()
    desk.now = 5.0
    assert errors(desk.ask("a", deadline=5.0)) == [(1, DeadlineUnreachable)]
    desk.ask("a", deadline=6.0)
    desk.ask("b", needs=80, deadline=6.0)
    assert errors(desk.wait(1.0)) == [(2, DeadlineUnreachable), (3, DeadlineUnreachable)]


def test_c8_crashes_at_load_back_off_then_open_the_circuit_for_this_model_alone() -> None:
    desk = Desk(max_crashes=3, backoff=1.0, cooldown=30.0)
    desk.ask("a")
    assert desk.exited("r1", "NATIVE_ABORT") == (Start("r2", "a"),)
    assert desk.exited("r2", "NATIVE_ABORT") == ()
    assert desk.state.wake_at(desk.now) == 1.0
    assert desk.wait(1.0) == (Start("r3", "a"),)
    assert errors(desk.exited("r3", "NATIVE_ABORT")) == [(1, LoadFailed)]
    (refused,) = desk.ask("a")
    assert isinstance(refused, Refuse)
    assert isinstance(refused.error, CircuitOpen)
    assert refused.error.retry_after == 30.0
    assert desk.ask("b") == (Start("r4", "b"),)
    desk.now += 30.0
    assert desk.ask("a") == (Start("r5", "a"),)


@pytest.mark.parametrize("cause", ["LOAD_FAILED", "UNSUPPORTED_MODEL", "MODEL_CORRUPT"])
def test_a_load_that_no_retry_can_mend_fails_at_once_for_all(cause: str) -> None:
    desk = Desk()
    desk.ask("a")
    desk.ask("a")
    assert errors(desk.exited("r1", cause)) == [(1, LoadFailed), (2, LoadFailed)]
    assert desk.ask("a") == (Start("r2", "a"),)


def test_a_crash_under_requests_lets_the_next_one_start_a_runner() -> None:
    desk = Desk()
    desk.ask("a")
    desk.tell(Loaded("r1"))
    assert desk.exited("r1", "SIGNAL") == ()
    assert desk.tell(Left(1)) == ()
    assert desk.ask("a") == (Start("r2", "a"),)


def test_unload_waits_for_the_requests_and_serves_later_ones_anew() -> None:
    desk = Desk()
    desk.ask("a")
    desk.tell(Loaded("r1"))
    assert desk.tell(Unload("a")) == ()
    assert desk.ask("a") == ()
    assert desk.tell(Left(1)) == (Stop("r1", Why.UNLOADED),)
    assert desk.exited("r1") == (Start("r2", "a"),)


@pytest.mark.parametrize("keep_alive", [None, FOREVER])
def test_unload_during_a_load_serves_those_who_waited_then_takes_effect(
    keep_alive: float | None,
) -> None:
    desk = Desk()
    desk.ask("a", keep_alive=keep_alive)
    assert desk.tell(Unload("a")) == ()
    assert desk.tell(Loaded("r1")) == (Grant(1, "r1"),)
    assert desk.ask("a") == ()
    assert desk.tell(Left(1)) == (Stop("r1", Why.UNLOADED),)
    assert desk.exited("r1") == (Start("r2", "a"),)
    assert desk.tell(Loaded("r2")) == (Grant(2, "r2"),)
    assert desk.phase("a") is Phase.SERVING


def test_unload_during_a_load_whose_callers_have_gone_takes_effect_too() -> None:
    desk = Desk()
    desk.ask("a")
    desk.tell(Unload("a"))
    desk.tell(Left(1))
    assert desk.tell(Loaded("r1")) == (Stop("r1", Why.UNLOADED),)


def test_priority_goes_first_and_position_counts_those_ahead() -> None:
    desk = Desk(Policy(concurrency=1))
    desk.ask("a")
    desk.tell(Loaded("r1"))
    desk.ask("a")
    desk.ask("a", priority=5)
    assert desk.state.positions() == {3: 0, 2: 1}
    assert desk.tell(Left(1)) == (Grant(3, "r1"),)


def test_nobody_waits_behind_one_who_wants_the_model_loaded_and_no_more() -> None:
    desk = Desk()
    desk.ask("a", loads=True)
    desk.ask("a")
    desk.ask("a")
    assert desk.state.positions() == {1: 0, 2: 0, 3: 1}


def test_a_report_over_the_budget_makes_idle_ones_go() -> None:
    desk = Desk()
    desk.ask("a")
    desk.tell(Loaded("r1"))
    desk.tell(Left(1))
    desk.ask("b")
    assert desk.tell(Loaded("r2", memory=70)) == (Grant(2, "r2"), Stop("r1", Why.EVICTED))


def test_memory_that_is_freed_for_one_is_not_taken_by_another() -> None:
    desk = Desk()
    desk.ask("a", needs=50)
    desk.tell(Loaded("r1"))
    desk.tell(Left(1))
    assert desk.ask("b", needs=80) == (Stop("r1", Why.EVICTED),)
    assert desk.ask("c", needs=50) == ()
    assert desk.exited("r1") == (Start("r2", "b"),)


def test_what_is_free_is_used_while_another_waits_for_the_busy() -> None:
    desk = Desk()
    desk.ask("a", needs=50)
    desk.tell(Loaded("r1"))
    assert desk.ask("b", needs=80) == ()
    assert desk.ask("c", needs=50) == (Start("r2", "c"),)


def test_the_memory_of_a_pinned_model_that_is_unloaded_is_waited_for() -> None:
    desk = Desk()
    desk.ask("a", needs=60, keep_alive=FOREVER)
    desk.tell(Loaded("r1"))
    desk.tell(Left(1))
    assert desk.tell(Unload("a")) == (Stop("r1", Why.UNLOADED),)
    assert desk.ask("b", needs=60) == ()
    assert desk.exited("r1") == (Start("r2", "b"),)


def test_a_load_that_went_well_closes_the_circuit_but_crashes_still_count() -> None:
    desk = Desk(max_crashes=2, cooldown=30.0)
    desk.ask("a")
    desk.exited("r1")
    desk.tell(Loaded("r2"))
    desk.tell(Left(1))
    assert desk.exited("r2") == ()
    assert errors(desk.ask("a")) == [(2, CircuitOpen)]
    desk.now += 30.0
    assert desk.ask("a") == (Start("r3", "a"),)
    assert desk.tell(Loaded("r3")) == (Grant(3, "r3"),)
    assert desk.ask("a") == (Grant(4, "r3"),)


def test_who_lost_its_runner_goes_first_whatever_the_queue() -> None:
    desk = Desk(Policy(concurrency=1), queue_per_model=2, queue_total=2)
    desk.load("a")
    desk.ask("a", priority=5)
    desk.ask("a")
    assert errors(desk.ask("a")) == [(4, QueueFull)]
    assert desk.ask("a", moved=True) == ()
    assert desk.tell(Left(1)) == (Grant(5, "r1"),)
    assert desk.tell(Left(5)) == (Grant(2, "r1"),)
