"""Tries again what may pass: a bounded number of times, more slowly each time."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from headrace.errors import SourceUnavailable
from headrace_server.store.sources.limits import Limits

T = TypeVar("T")
_TOO_MANY = 429
_PASSING = {408, 425, _TOO_MANY}
_SERVER_ERRORS = range(500, 600)
_LATER = 5.0
"""Seconds that an error which may pass asks for where its source does not say."""


class TryAgain(Exception):
    """What failed may pass. `error` is raised if it does not; `after`: not before, in seconds."""

    def __init__(self, error: SourceUnavailable, after: float = 0.0) -> None:
        super().__init__(error.message)
        self.error = error
        self.after = after


def retrying(
    attempt: Callable[[], T],
    advance: Callable[[], int],
    limits: Limits,
    pause: Callable[[float], None],
) -> T:
    """What `attempt` gives, once it does not raise TryAgain any more.

    Tries that bring nothing are counted, in a row: `advance` grows with what they bring. Raises the
    error of the last try.
    """
    barren, before = 0, advance()
    while True:
        try:
            return attempt()
        except TryAgain as failed:
            barren = 0 if advance() > before else barren + 1
            before = advance()
            # Jitter keeps those that were cut off together from coming back together.
            delay = limits.backoff * 2 ** max(0, barren - 1) * random.uniform(0.5, 1.0)
            delay = max(min(delay, limits.longest_wait), failed.after)
            if barren >= limits.tries or delay > limits.longest_wait:
                if failed.after:
                    failed.error.retry_after = failed.after
                raise failed.error from failed
            pause(delay)


def try_again_after(error: SourceUnavailable, status: int, header: str) -> TryAgain | None:
    """`error` as one that may pass, by the answer's status and its Retry-After; else None."""
    if status not in _PASSING and status not in _SERVER_ERRORS:
        return None
    error.retry_after = _LATER
    return TryAgain(error, _seconds(header))


def _seconds(header: str) -> float:
    """Retry-After is a number of seconds or a date (RFC 9110, 10.2.3)."""
    if header.isdecimal():
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
