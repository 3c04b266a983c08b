"""Did the kernel kill a process for lack of memory? Its own count is the evidence."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from headrace.host import cgroup

_LASTS = 10.0
"""Seconds for which a kill may explain a death. The kernel counts it before the process is gone,
which takes the longer the more memory there is to give back; then its output is read."""
_MOST = 64
"""Kills that are remembered: more runners than die at once."""


class OomKills:
    """Tells a kill for lack of memory from another SIGKILL. One for all runners of a controller."""

    def __init__(
        self,
        count: Callable[[], int | None] = cgroup.oom_kills,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`count`: kills so far, where runners are; None where nobody counts them. `clock`: in
        seconds."""
        self._count = count
        self._clock = clock
        self._counted = count()
        self._open: deque[float] = deque(maxlen=_MOST)
        """When each kill was first seen that has explained no death yet."""

    def look(self) -> None:
        """Call it now and then: what was seen long before a death does not explain it."""
        count, now = self._count(), self._clock()
        if count is not None and self._counted is not None:
            self._open.extend([now] * min(_MOST, count - self._counted))
        self._counted = count
        while self._open and now - self._open[0] > _LASTS:
            self._open.popleft()

    def explains(self) -> bool | None:
        """Whether there was one of late that no death was explained by yet; None: that cannot be
        known.

        It explains this one alone.
        """
        self.look()
        if self._counted is None:
            return None
        if not self._open:
            return False
        self._open.popleft()
        return True
