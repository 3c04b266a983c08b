"""The watchdog of a runner's progress, on a clock of the test's own."""

from __future__ import annotations

from headrace_runner.watchdog import Watchdog

LIMIT = 60.0


def looks(dog: Watchdog, last_step: float, times: list[float]) -> list[bool]:
    """What it says at each time, with work that has stood still since `last_step`."""
    return [dog.is_stalled(now - last_step, now) for now in times]


def test_work_that_stands_still_is_a_stall() -> None:
    dog = Watchdog(LIMIT, 0.0)
    assert looks(dog, 10.0, [15, 30, 45, 60, 75, 90]) == [False] * 4 + [True, True]


def test_progress_ends_it() -> None:
    dog = Watchdog(LIMIT, 0.0)
    assert looks(dog, 0.0, [15, 30, 45, 60, 75])[-1]
    assert looks(dog, 80.0, [90]) == [False]


def test_a_process_that_was_suspended_is_not_stalled_when_it_wakes() -> None:
    dog = Watchdog(LIMIT, 0.0)
    looks(dog, 14.0, [15])
    assert looks(dog, 14.0, [4000, 4015, 4030, 4045]) == [False] * 4
    # What stands still from then on does count.
    assert looks(dog, 14.0, [4060, 4075]) == [False, True]


def test_a_look_that_comes_a_little_late_changes_nothing() -> None:
    dog = Watchdog(LIMIT, 0.0)
    assert looks(dog, 0.0, [16, 33, 49, 66])[-1]
