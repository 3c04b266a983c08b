"""What holds for everyone who follows a journal, whenever he comes and however slow he is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace_server.events.journal import Change, Journal

puts = st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.integers(0, 3)))


def applied(values: dict[str, int], changes: list[Change[int]]) -> dict[str, int]:
    """The values after the changes, as a client has them."""
    for change in changes:
        if change.value is None:
            del values[change.name]  # What is gone was there.
        else:
            values[change.name] = change.value
    return values


@given(st.lists(puts), st.lists(puts), st.integers(1, 20))
def test_a_snapshot_and_the_changes_since_are_the_later_snapshot(
    first: list[tuple[str, int | None]], then: list[tuple[str, int | None]], limit: int
) -> None:
    journal: Journal[int] = Journal("j", limit)
    for name, value in first:
        journal.put(name, value)
    snapshot, token = dict(journal.values), journal.token(journal.revision)
    changed = [journal.put(name, value) for name, value in then]
    changes = journal.since(journal.revision_of(token))
    if sum(changed) > limit:
        assert changes is None
    else:
        assert changes is not None
        assert applied(snapshot, changes) == journal.values
        assert len(changes) == sum(changed)


@given(st.lists(puts, min_size=1), st.integers(0, 40))
def test_any_revision_that_is_kept_can_be_resumed_from(
    history: list[tuple[str, int | None]], place: int
) -> None:
    journal: Journal[int] = Journal("j", 1000)
    states = [dict(journal.values)]
    for name, value in history:
        if journal.put(name, value):
            states.append(dict(journal.values))
    revision = min(place, journal.revision)
    changes = journal.since(revision)
    assert changes is not None
    assert applied(dict(states[revision]), changes) == states[-1]


def test_what_stays_the_same_is_no_change() -> None:
    journal: Journal[int] = Journal("j", 4)
    assert journal.put("a", 1)
    assert not journal.put("a", 1)
    assert not journal.put("b", None)
    assert journal.revision == 1


def test_no_more_is_kept_than_the_limit() -> None:
    journal: Journal[int] = Journal("j", 3)
    for value in range(10):
        journal.put("a", value)
    assert [change.value for change in journal.since(7) or ()] == [7, 8, 9]
    assert journal.since(6) is None
    assert journal.since(10) == []
    assert journal.since(11) is None


def test_a_token_is_good_for_one_journal() -> None:
    one: Journal[int] = Journal("one", 3)
    one.put("a", 1)
    other: Journal[int] = Journal("other", 3)
    assert one.revision_of(one.token(1)) == 1
    for wrong in (other.token(1), "", "one", "one.", "one.x", "one.²", "one." + "9" * 5000):
        assert one.since(one.revision_of(wrong)) is None
