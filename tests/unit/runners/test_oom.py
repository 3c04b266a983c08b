"""Which death the kernel's count explains."""

from __future__ import annotations

from headrace_server.runners.oom import OomKills


def test_each_kill_explains_one_death() -> None:
    counts = [3]
    kills = OomKills(lambda: counts[-1])
    assert kills.explains() is False
    counts.append(5)
    assert [kills.explains() for _ in range(3)] == [True, True, False]


def test_what_was_seen_long_before_explains_nothing() -> None:
    counts, times = [3], [0.0]
    kills = OomKills(lambda: counts[-1], lambda: times[-1])
    counts.append(4)  # another process of the group, say
    kills.look()
    times.append(60.0)
    assert kills.explains() is False


def test_a_look_between_a_kill_and_its_diagnosis_takes_no_evidence_away() -> None:
    """Other runners are probed at any time; a large process takes a while to go."""
    counts, times = [3], [0.0]
    kills = OomKills(lambda: counts[-1], lambda: times[-1])
    counts.append(4)
    kills.look()
    times.append(2.0)
    kills.look()
    assert kills.explains() is True
    assert kills.explains() is False


def test_where_nobody_counts_nothing_is_known() -> None:
    assert OomKills(lambda: None).explains() is None
