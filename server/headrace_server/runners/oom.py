"""Did the kernel kill a process for lack of memory? Its own count is the evidence."""

from __future__ import annotations

from collections.abc import Callable

from headrace.host import cgroup


class OomKills:
    """Tells a kill for lack of memory from another SIGKILL. One for all runners of a controller."""

    def __init__(self, count: Callable[[], int | None] = cgroup.oom_kills) -> None:
        """`count`: kills so far, where runners are; None where nobody counts them."""
        self._count = count
        self._seen = count()

    def look(self) -> None:
        """Call it now and then: what was counted before a look explains no death after it."""
        self._seen = self._count()

    def explains(self) -> bool | None:
        """Whether there was one that no death was explained by yet; None: that cannot be known.

        It explains this one alone.
        """
        count = self._count()
        if count is None or self._seen is None:
            return None
        if count <= self._seen:
            return False
        self._seen += 1
        return True
