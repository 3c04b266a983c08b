"""Deadlines that cannot be met are refused at once, by what was measured and by nothing else."""

import math
from typing import Any

import pytest

from headrace.errors import DeadlineUnreachable
from headrace_server.scheduling.admission import earliest
from headrace_server.scheduling.events import Grant, Left, Loaded, Refuse, Start
from headrace_server.scheduling.state import Asked, Phase, Policy, Slot
from headrace_server.scheduling.timing import HALF_LIFE, LONG_PROMPT, Estimate, Pace, Timings
from tests.unit.control.cores import Desk, errors

PACE = Pace(load=10.0, service=4.0, prefill=1.0)


def slot(phase: Phase, load: int = 0, started_at: float = 0.0) -> Slot:
    leases = frozenset(range(load))
    return Slot("r1", "a", "a", 1, Policy(concurrency=2), 1.0, started_at, 0.0, phase, leases)


@pytest.mark.parametrize(
    ("slots", "ahead", "more", "seconds"),
    [
        ([slot(Phase.SERVING)], 0, {}, 1.0),
        ([], 0, {}, 11.0),
        ([], 0, {"retry_at": 105.0}, 16.0),
        ([slot(Phase.LOADING, started_at=94.0)], 0, {}, 5.0),
        ([slot(Phase.LOADING, started_at=50.0)], 0, {}, 1.0),
        ([slot(Phase.SERVING, 2)], 1, {}, 1.0),
        ([slot(Phase.SERVING, 2)], 2, {}, 5.0),
        ([slot(Phase.SERVING, 2)], 5, {}, 9.0),
        ([slot(Phase.STALLED, 2)], 0, {}, 1.0),
        ([slot(Phase.RETIRING, 2)], 0, {}, 11.0),
    ],
)
def test_the_earliest_first_token(
    slots: list[Slot], ahead: int, more: dict[str, Any], seconds: float
) -> None:
    asked = Asked(1, "a", "a", 1, Policy(concurrency=2), pace=PACE)
    options = {"retry_at": -math.inf, **more}
    assert earliest(asked, slots, ahead=ahead, now=100.0, **options) == seconds


def test_a9_a_deadline_that_cannot_be_met_is_refused_at_once_with_the_estimate() -> None:
    desk = Desk()
    (refused,) = desk.ask("a", deadline=10.9, pace=PACE)
    assert isinstance(refused, Refuse)
    assert isinstance(refused.error, DeadlineUnreachable)
    assert refused.error.metadata["estimate"] == "11.000"
    assert "11.0 s" in refused.error.message
    assert desk.ask("a", deadline=11.1, pace=PACE) == (Start("r1", "a"),)


def test_a9_nobody_is_refused_by_what_was_not_measured() -> None:
    desk = Desk()
    assert desk.ask("a", deadline=1e-6) == (Start("r1", "a"),)


def test_a9_a_place_that_is_free_does_not_help_one_whose_prompt_takes_too_long() -> None:
    desk = Desk()
    desk.load("a")
    slow = Pace(prefill=5.0)
    assert errors(desk.ask("a", deadline=4.0, pace=slow)) == [(2, DeadlineUnreachable)]
    assert desk.ask("a", deadline=6.0, pace=slow) == (Grant(3, "r1"),)


def test_what_was_measured_once_says_nothing_yet_and_later_nearly_all() -> None:
    estimate = Estimate().after(10.0, 0.0)
    assert estimate.low(0.0) == 0.0
    for _ in range(20):
        estimate = estimate.after(10.0, 0.0)
    assert 9.9 < estimate.low(0.0) <= 10.0


def test_a_figure_that_scatters_says_little() -> None:
    estimate = Estimate()
    for _ in range(20):
        estimate = estimate.after(1.0, 0.0).after(19.0, 0.0)
    assert estimate.low(0.0) == 0.0


def test_a_model_never_loaded_is_taken_to_load_like_others_by_its_bytes() -> None:
    timings = Timings()
    assert timings.pace("new", 500, 0, 0.0) == Pace()
    for _ in range(20):
        timings.loaded("a", 100, 2.0, 0.0)
        timings.loaded("b", 200, 4.0, 0.0)
    assert timings.pace("new", 500, 0, 0.0).load == pytest.approx(10.0, rel=0.05)
    assert timings.pace("a", 500, 0, 0.0).load == pytest.approx(2.0, rel=0.05)


def test_a_prompt_is_estimated_by_its_bytes_as_long_prompts_taught() -> None:
    timings = Timings()
    for _ in range(20):
        timings.advanced("a", LONG_PROMPT, 4.096, 0.0)
        timings.advanced("a", 10, 0.5, 0.0)
    assert timings.pace("a", 1, 10_000, 0.0).prefill == pytest.approx(10.0, rel=0.05)
    assert timings.pace("b", 1, 10_000, 0.0).prefill == 0.0


def test_a9_a_figure_that_is_not_measured_again_does_not_refuse_for_ever() -> None:
    timings = Timings()
    for _ in range(20):
        timings.loaded("a", 100, 20.0, 0.0)
    desk = Desk()

    def ask() -> list[tuple[int, type]]:
        return errors(
            desk.ask("a", deadline=desk.now + 8.0, pace=timings.pace("a", 100, 0, desk.now))
        )

    assert ask() == [(1, DeadlineUnreachable)]
    desk.now = HALF_LIFE
    assert ask() == [(2, DeadlineUnreachable)]
    desk.now = 2 * HALF_LIFE
    assert ask() == []
    timings.loaded("a", 100, 20.0, desk.now)
    assert timings.pace("a", 100, 0, desk.now).load > 15.0


def test_a9_what_the_runner_has_of_a_prompt_is_not_counted() -> None:
    desk = Desk()
    prompt = tuple(range(11))
    pace = Pace(prefill=10.0)
    assert errors(desk.ask("a", deadline=9.0, pace=pace, prefixes=prompt)) == [
        (1, DeadlineUnreachable)
    ]
    desk.load("a", prefixes=prompt)
    desk.tell(Left(2))
    assert desk.ask("a", deadline=0.1, pace=pace, prefixes=prompt) == (Grant(3, "r1"),)
    # Of one that goes on it takes the rest: of at least 12 KiB at most 6 KiB are known.
    longer = (*prompt[:9], 100, 101, 102)
    assert errors(desk.ask("a", deadline=4.9, pace=pace, prefixes=longer)) == [
        (4, DeadlineUnreachable)
    ]
    assert desk.ask("a", deadline=5.1, pace=pace, prefixes=longer) == (Grant(5, "r1"),)
    other = tuple(range(100, 111))
    assert errors(desk.ask("a", deadline=9.0, pace=pace, prefixes=other)) == [
        (6, DeadlineUnreachable)
    ]


def test_models_that_are_gone_are_forgotten() -> None:
    timings = Timings()
    for _ in range(20):
        timings.served("a", 3.0, 0.0)
        timings.served("b", 3.0, 0.0)
    timings.keep_only({"a"})
    assert timings.pace("a", 1, 0, 0.0).service > 2.9
    assert timings.pace("b", 1, 0, 0.0).service == 0.0


def test_the_wait_behind_others_counts_once_they_take_all_places() -> None:
    desk = Desk(Policy(concurrency=1))
    desk.load("a")
    pace = Pace(service=4.0)
    assert desk.ask("a", deadline=1.0, pace=pace) == ()
    assert errors(desk.ask("a", deadline=3.9, pace=pace)) == [(3, DeadlineUnreachable)]
    assert desk.ask("a", deadline=4.1, pace=pace) == ()
    assert desk.ask("a", deadline=3.9, pace=pace, priority=1) == ()
    desk.tell(Loaded("r1"))
