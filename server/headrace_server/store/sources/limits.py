"""How patient a pull is with a source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Times are in seconds."""

    together: int = 4
    """Files at a time."""
    tries: int = 6
    """In a row that bring nothing, before a file is given up."""
    backoff: float = 0.5
    """Before the second try; doubles from one to the next."""
    longest_wait: float = 60.0
    """Before a try. A source that asks for more is given up, with its own time in the error."""
    connect: float = 15.0
    stall: float = 30.0
    """Without a byte, until a connection counts as dead."""
    redirects: int = 8
