"""The core and runners that stall, crash or grow, and those who wait for their memory."""

import pytest

from headrace.errors import CircuitOpen, LoadFailed
from headrace_server.scheduling.events import (
    Advanced,
    Grant,
    Left,
    Loaded,
    Measured,
    Pressure,
    Recovered,
    Stalled,
    Start,
    Stop,
    Unload,
)
from headrace_server.scheduling.state import FOREVER, Phase, Policy, Why
from tests.unit.control.cores import Desk, errors


def test_c3_a_stalled_runner_gets_nobody_and_another_stands_in_for_it() -> None:
    desk = Desk()
    desk.load("a")
    desk.tell(Stalled("r1"))
    assert desk.ask("a") == (Start("r2", "a"),)
    assert desk.tell(Loaded("r2")) == (Grant(2, "r2"),)
    assert desk.slot("r1").leases == {1}


def test_a_stalled_runner_s_memory_counts_until_it_is_gone() -> None:
    desk = Desk()
    desk.load("a", needs=60)
    desk.tell(Stalled("r1"))
    assert desk.ask("a", needs=60) == ()
    assert desk.tell(Left(1)) == (Stop("r1", Why.EVICTED),)
    assert desk.exited("r1", "STALLED") == (Start("r2", "a"),)


def test_while_a_stalled_runner_goes_for_its_own_model_others_may_use_what_is_free() -> None:
    desk = Desk()
    desk.load("a", needs=55)
    desk.tell(Pressure(1))
    desk.tell(Stalled("r1"))
    desk.ask("a", needs=55)
    desk.ask("b", needs=15)
    desk.tell(Left(1))
    assert desk.tell(Pressure(0)) == (Stop("r1", Why.EVICTED), Start("r2", "b"))
    assert desk.wait(0.0) == ()
    assert desk.exited("r1") == (Start("r3", "a"),)


def test_a_stalled_runner_goes_first_pinned_or_not() -> None:
    desk = Desk()
    desk.load("b")
    desk.load("a", keep_alive=FOREVER)
    desk.tell(Left(1))
    desk.tell(Left(2))
    desk.tell(Stalled("r2"))
    assert desk.ask("c") == (Stop("r2", Why.EVICTED),)


def test_a_runner_that_recovers_serves_those_who_wait_and_its_stand_in_is_not_needed() -> None:
    desk = Desk()
    desk.load("a")
    desk.tell(Stalled("r1"))
    assert desk.ask("a") == (Start("r2", "a"),)
    assert desk.tell(Recovered("r1")) == (Grant(2, "r1"), Stop("r2", Why.SURPLUS))


def test_a_runner_that_retires_is_not_called_back_by_its_health() -> None:
    desk = Desk()
    desk.load("a")
    desk.tell(Unload("a"))
    for event in (Stalled("r1"), Recovered("r1")):
        desk.tell(event)
        assert desk.phase("a") is Phase.RETIRING


def test_crashes_after_progress_neither_open_the_circuit_nor_delay_the_next_start() -> None:
    desk = Desk(max_crashes=2)
    for number in range(1, 20):
        assert desk.load("a") == f"r{number}"
        desk.tell(Advanced(f"r{number}"))
        desk.exited(f"r{number}", "SIGNAL")
        assert desk.state.crashes["a"].cause == "SIGNAL"
        desk.tell(Left(number))


def test_crashes_before_any_progress_open_it() -> None:
    desk = Desk(max_crashes=2)
    desk.load("a")
    desk.exited("r1", "SIGNAL")
    desk.tell(Left(1))
    desk.load("a")
    assert errors(desk.exited("r2", "SIGNAL")) == []
    assert errors(desk.ask("a")) == [(3, CircuitOpen)]


@pytest.mark.parametrize("seconds", [1.0, 60.0, 300.0])
def test_c8_loads_that_fail_in_a_row_open_it_however_long_each_takes(seconds: float) -> None:
    desk = Desk()
    desk.ask("a")
    for failed, backoff in enumerate((0.0, 1.0, 2.0), 1):
        desk.now += seconds
        orders = desk.exited(f"r{failed}", "STALLED")
        assert (desk.wait(backoff) if backoff else orders) == (Start(f"r{failed + 1}", "a"),)
    desk.now += seconds
    assert errors(desk.exited("r4", "STALLED")) == [(1, LoadFailed)]
    assert errors(desk.ask("a")) == [(2, CircuitOpen)]


def test_a_load_that_goes_well_makes_up_for_those_that_failed_long_before_it() -> None:
    desk = Desk(max_crashes=2)
    desk.ask("a")
    assert desk.exited("r1", "STALLED") == (Start("r2", "a"),)
    desk.tell(Loaded("r2"))
    desk.tell(Unload("a"))
    desk.tell(Left(1))
    desk.exited("r2")
    desk.now += 1000.0
    desk.ask("a")
    assert desk.exited("r3", "STALLED") == (Start("r4", "a"),)


def test_progress_makes_up_for_the_crashes_before_it() -> None:
    desk = Desk(max_crashes=2)
    desk.load("a")
    desk.exited("r1")
    desk.load("a")
    desk.tell(Advanced("r2"))
    desk.exited("r2")
    desk.load("a")
    desk.exited("r3")
    assert errors(desk.ask("a")) == []


def test_a_second_lack_of_memory_is_told_from_one_after_progress() -> None:
    desk = Desk()
    desk.load("b")
    desk.tell(Left(1))
    desk.load("a")
    desk.tell(Advanced("r2"))
    desk.exited("r2", "OUT_OF_MEMORY")
    desk.ask("a")
    assert desk.exited("r3", "OUT_OF_MEMORY") == (Stop("r1", Why.EVICTED),)


def test_a6_each_load_that_runs_out_of_memory_is_tried_once_more() -> None:
    desk = Desk()
    desk.load("b")
    desk.ask("a")
    assert desk.exited("r2", "OUT_OF_MEMORY") == (Start("r3", "a"),)
    assert errors(desk.exited("r3", "OUT_OF_MEMORY")) == [(2, LoadFailed)]
    desk.tell(Left(1))
    desk.now += 200.0
    desk.ask("a")
    assert desk.exited("r4", "OUT_OF_MEMORY") == (Stop("r1", Why.EVICTED),)
    desk.exited("r1")
    assert desk.wait(2.0) == (Start("r5", "a"),)


@pytest.mark.parametrize("alone", [True, False])
def test_a6_a_lack_of_memory_that_was_not_followed_by_another_try_does_not_count(
    alone: bool,
) -> None:
    desk = Desk()
    if alone:
        desk.ask("a")
        desk.exited("r1", "OUT_OF_MEMORY")
        desk.load("b")
    else:
        desk.load("b")
        desk.ask("a")
        desk.tell(Left(2))
        desk.exited("r2", "OUT_OF_MEMORY")
    desk.ask("a")
    desk.tell(Left(2 if alone else 1))
    b, a = ("r2", "r3") if alone else ("r1", "r3")
    assert desk.exited(a, "OUT_OF_MEMORY") == (Stop(b, Why.EVICTED),)


def test_a_runner_that_grows_beyond_the_budget_makes_idle_ones_go() -> None:
    desk = Desk()
    desk.load("b")
    desk.tell(Left(1))
    desk.load("a")
    assert desk.tell(Measured("r2", 60)) == ()
    assert desk.tell(Measured("r2", 61)) == (Stop("r1", Why.EVICTED),)
    assert desk.slot("r2").memory == 61


def test_what_a_runner_gives_back_is_used() -> None:
    desk = Desk()
    desk.load("a", needs=80)
    assert desk.ask("b") == ()
    assert desk.tell(Measured("r1", 50)) == (Start("r2", "b"),)


def test_under_pressure_the_biggest_idle_runner_goes_first_and_no_more_than_needed() -> None:
    desk = Desk()
    for number, (key, needs) in enumerate((("a", 20), ("b", 45), ("c", 30)), 1):
        desk.load(key, needs)
        desk.tell(Left(number))
        desk.now += 1
    assert desk.tell(Pressure(46)) == (Stop("r2", Why.PRESSURE), Stop("r3", Why.PRESSURE))
    assert desk.tell(Pressure(46)) == ()
    desk.exited("r2")
    desk.exited("r3")
    assert desk.phase("a") is Phase.SERVING


def test_pressure_spares_the_busy_and_the_pinned() -> None:
    desk = Desk()
    desk.load("a")
    desk.load("b", keep_alive=FOREVER)
    desk.tell(Left(2))
    assert desk.tell(Pressure(1000)) == ()


def test_nothing_is_loaded_beside_others_while_the_machine_is_short_of_memory() -> None:
    desk = Desk()
    desk.load("a", needs=20)
    desk.tell(Pressure(1))
    assert desk.ask("b") == ()
    assert desk.tell(Pressure(0)) == (Start("r2", "b"),)
    desk.tell(Pressure(1))
    assert desk.exited("r2", "OUT_OF_MEMORY") == ()
    desk.tell(Left(1))
    assert desk.exited("r1") == (Start("r3", "b"),)


@pytest.mark.parametrize("waited", [29.0, 30.0])
def test_whose_patience_is_over_is_given_the_memory_of_the_busy_when_these_have_ended(
    waited: float,
) -> None:
    desk = Desk(Policy(concurrency=2), patience=30.0)
    desk.load("a", needs=50)
    desk.load("b", needs=50)
    assert desk.ask("c", needs=80) == ()
    desk.wait(waited)
    late = desk.ask("a", needs=50)
    assert late == (() if waited == 30.0 else (Grant(4, "r1"),))
    desk.tell(Left(1))
    desk.tell(Left(2))
    assert (desk.phase("a") is Phase.STOPPING) is (waited == 30.0)


def test_those_who_came_before_are_served_before_their_runner_is_claimed() -> None:
    desk = Desk(Policy(concurrency=1), patience=30.0)
    desk.load("a", needs=60)
    desk.ask("a", needs=60)
    assert desk.ask("b", needs=60) == ()
    desk.ask("a", needs=60)
    desk.wait(30.0)
    assert desk.tell(Left(1)) == (Grant(2, "r1"),)
    assert desk.phase("a") is Phase.RETIRING
    assert desk.tell(Left(2)) == (Stop("r1", Why.EVICTED),)
    assert desk.exited("r1") == (Start("r2", "b"),)


def test_what_is_claimed_is_not_taken_by_others() -> None:
    desk = Desk(patience=30.0)
    desk.load("a", needs=60)
    desk.ask("b", needs=70)
    desk.wait(30.0)
    assert desk.ask("c", needs=20) == ()
    assert desk.tell(Left(1)) == (Stop("r1", Why.EVICTED),)
    assert desk.exited("r1") == (Start("r2", "b"), Start("r3", "c"))


def test_a_model_that_comes_to_stay_ends_the_hope_of_who_waits_for_its_memory() -> None:
    desk = Desk()
    desk.load("a", needs=50)
    assert desk.ask("b", needs=100) == ()
    refused = desk.ask("c", needs=40, keep_alive=FOREVER)
    assert refused[0] == Start("r2", "c")
    assert [request for request, _ in errors(refused)] == [2]
