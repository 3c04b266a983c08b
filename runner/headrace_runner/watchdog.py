"""Has work stood still for too long? Pure; it is told the time.

A process that was suspended, with its machine or alone, finds all its clocks far ahead when it
wakes. The watchdog sees that it slept itself, since it did not look when it was to, and counts from
then on.
"""

from __future__ import annotations


class Watchdog:
    """Looks every `interval` seconds."""

    def __init__(self, limit: float, now: float) -> None:
        """`limit`: seconds that work may stand still."""
        self._limit = limit
        self._looked_at = now
        self._awake_since = now
        self.interval = limit / 4

    def is_stalled(self, stalled_for: float, now: float) -> bool:
        """Whether it is too long, given how long it was by the clock."""
        if now - self._looked_at > 2 * self.interval:
            self._awake_since = now
        self._looked_at = now
        return min(stalled_for, now - self._awake_since) > self._limit
