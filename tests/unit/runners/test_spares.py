"""When a spare runner is made. Times in seconds."""

from __future__ import annotations

import pytest

from headrace_server.runners.spares import (
    BACKOFF,
    LEAST_MEMORY,
    MOST_DEATHS,
    PATIENCE,
    QUIET,
    Activity,
    due,
    is_wanted,
)


def test_none_is_made_while_a_model_is_loading() -> None:
    assert due(Activity.LOADING, 0, 0.0, 1e6) is None


def test_it_is_made_soon_when_no_request_runs() -> None:
    assert due(Activity.QUIET, 0, 100.0, 100.0) == 100.0 + QUIET
    assert due(Activity.QUIET, 0, 100.0, 500.0) == 500.0 + QUIET


def test_requests_put_it_off_but_not_for_ever() -> None:
    assert due(Activity.BUSY, 0, 100.0, 100.0) == 100.0 + PATIENCE
    assert due(Activity.BUSY, 0, 100.0, 100.0 + 2 * PATIENCE) == 100.0 + 2 * PATIENCE


@pytest.mark.parametrize("activity", [Activity.QUIET, Activity.BUSY])
def test_one_that_died_is_replaced_later_and_later_and_then_no_more(activity: Activity) -> None:
    times = [due(activity, deaths, 0.0, 0.0) for deaths in range(MOST_DEATHS + 1)]
    assert times[-1] is None
    made = [time for time in times if time is not None]
    assert len(made) == MOST_DEATHS
    assert made == sorted(made)
    assert made[-1] >= BACKOFF * 2 ** (MOST_DEATHS - 2)


@pytest.mark.parametrize(
    ("told", "memory", "wanted"),
    [
        (None, LEAST_MEMORY, True),
        (None, LEAST_MEMORY - 1, False),
        (True, 1, True),
        (False, 1 << 40, False),
    ],
)
def test_the_operators_word_counts_else_the_memory(
    told: bool | None, memory: int, wanted: bool
) -> None:
    assert is_wanted(told, memory) is wanted
