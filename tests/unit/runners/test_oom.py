"""Which death the kernel's count explains."""

from __future__ import annotations

from headrace_server.runners.oom import OomKills


def test_each_kill_explains_one_death() -> None:
    counts = [3]
    kills = OomKills(lambda: counts[-1])
    assert kills.explains() is False
    counts.append(5)
    assert [kills.explains() for _ in range(3)] == [True, True, False]


def test_what_was_seen_before_explains_nothing_later() -> None:
    counts = [3]
    kills = OomKills(lambda: counts[-1])
    counts.append(4)  # another process of the group, say
    kills.look()
    assert kills.explains() is False


def test_where_nobody_counts_nothing_is_known() -> None:
    assert OomKills(lambda: None).explains() is None
