"""The core while the controller drains: who still gets a runner, and when runners go."""

from headrace.errors import Draining
from headrace_server.scheduling.events import Drain, Grant, Left, Loaded, Start, Stop
from headrace_server.scheduling.state import Policy, Why
from tests.unit.control.cores import Desk, errors


def test_drain_refuses_those_who_wait_and_lets_the_others_finish() -> None:
    desk = Desk(Policy(concurrency=1))
    desk.ask("a")
    desk.tell(Loaded("r1"))
    desk.ask("a")
    assert errors(desk.tell(Drain())) == [(2, Draining)]
    assert errors(desk.ask("a")) == [(3, Draining)]
    assert desk.tell(Left(1)) == (Stop("r1", Why.DRAINED),)


def test_c1_one_who_moves_during_a_drain_gets_another_runner_which_goes_after_it() -> None:
    desk = Desk()
    desk.load("a")
    desk.ask("b", needs=100, moved=True)
    assert desk.tell(Drain()) == ()
    desk.exited("r1", "SIGNAL")
    assert desk.tell(Left(1)) == ()
    desk.exited("r2", "NATIVE_ABORT")
    assert desk.tell(Loaded("r3")) == (Grant(2, "r3"),)
    assert desk.ask("b", needs=100, moved=True) == (Grant(3, "r3"),)
    assert desk.tell(Left(2)) == ()
    assert desk.tell(Left(3)) == (Stop("r3", Why.DRAINED),)


def test_a_load_for_one_who_moves_goes_with_him_in_a_drain() -> None:
    desk = Desk()
    desk.tell(Drain())
    assert desk.ask("a", moved=True) == (Start("r1", "a"),)
    assert desk.tell(Left(1)) == (Stop("r1", Why.DRAINED),)


def test_a_drain_without_moves_refuses_all_and_starts_nothing() -> None:
    desk = Desk()
    desk.ask("a", moved=True)
    refused, stopped = desk.tell(Drain(moves=False))
    assert errors((refused,)) == [(1, Draining)]
    assert stopped == Stop("r1", Why.DRAINED)
    desk.tell(Drain())
    assert errors(desk.ask("a", moved=True)) == [(2, Draining)]
