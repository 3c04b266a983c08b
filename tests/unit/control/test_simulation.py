"""The scheduling core under random schedules, and what happens to them when it is broken."""

import pickle
import re
from pathlib import Path

import pytest

from headrace_server.scheduling import settling, state
from tests.lengths import length
from tests.simulation.mutations import MUTATIONS, Mutation, broken, seeds_until_noticed
from tests.simulation.runs import BrokenError, run, run_all, run_many
from tests.simulation.world import Transition

QUICK = 1_000
SLOW = length(100_000, 15_000)
NOTICED_WITHIN = 1_000
"""Schedules."""

PAGE = Path(__file__).parents[3] / "docs" / "scheduling.md"


@pytest.fixture(scope="module")
def seen() -> set[Transition]:
    """The transitions of runners in the quick schedules, all of which hold."""
    return run_all(range(QUICK))


def test_what_has_to_hold_does_and_the_phases_are_those_of_the_docs(seen: set[Transition]) -> None:
    assert seen == documented()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_has_to_hold_does_in_many_schedules() -> None:
    assert run_many(range(QUICK, SLOW)) <= documented()


def test_a_schedule_is_the_same_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1, 2):
        run(seed, trace=True)
        first = capsys.readouterr().out
        run(seed, trace=True)
        assert capsys.readouterr().out == first
        assert first.count("\n") > 10


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_core_that_is_broken_is_noticed(mutation: Mutation) -> None:
    assert seeds_until_noticed(mutation, NOTICED_WITHIN) is not None


@pytest.mark.parametrize(
    "same",
    [
        Mutation(
            "nothing",
            state,
            "from enum import Enum, StrEnum\n",
            "from enum import Enum, StrEnum\n\n",
        ),
        Mutation("nothing", settling, "_STANDING = ", "_STANDING  = "),
    ],
    ids=["state", "settling"],
)
def test_a_core_whose_source_was_changed_without_effect_is_not(same: Mutation) -> None:
    assert seeds_until_noticed(same, 200) is None


def test_a_broken_schedule_tells_how_to_see_it_again() -> None:
    (mutation,) = (m for m in MUTATIONS if m.what == "nobody is served")
    again = r"python -m tests.simulation --seed 1 --trace"
    with broken(mutation), pytest.raises(BrokenError, match=again) as caught:
        run(1)
    from_another_process = pickle.loads(pickle.dumps(caught.value))
    assert str(from_another_process) == str(caught.value)


def documented() -> set[Transition]:
    """The table of the docs."""
    rows = re.findall(r"^\|(.+)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    table = [[cell.strip() for cell in row.split("|")] for row in rows]
    begin = next(i for i, cells in enumerate(table) if cells[0] == "from")
    _, *causes = table[begin]
    found: set[Transition] = set()
    for origin, *cells in table[begin + 2 : begin + 8]:
        for cause, cell in zip(causes, cells, strict=True):
            for phase in filter(None, cell.split(", ")):
                found.add((origin.replace("none", ""), cause, phase.replace("none", "")))
    return found
