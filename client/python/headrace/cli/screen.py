"""What is drawn for people: by rich, in colours that a light and a dark terminal both have.

Elsewhere than on a terminal it is the same text without escapes. Nothing that a process has printed
can move the cursor here.
"""

from __future__ import annotations

import io
import os
import re
import sys
from datetime import datetime
from typing import Final

from rich.console import Console

PLAIN_WIDTH: Final = 100
"""Columns where there is no terminal."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def console() -> Console:
    """Where a command draws: on standard output."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a terminal that does not know µ gets another sign
    width = None
    if not stream.isatty() and not os.environ.get("COLUMNS"):
        width = PLAIN_WIDTH
    return Console(
        file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False
    )


def draws_unicode(drawn: Console) -> bool:
    """Whether lines and blocks can be shown."""
    return drawn.encoding.lower().startswith("utf")


def safe(text: str) -> str:
    """A text without control characters but for newlines and tabs."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def elapsed(nanoseconds: int) -> str:
    """A span of time, in three digits or so."""
    seconds = nanoseconds / 1e9
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.{1 if seconds < 0.00995 else 0}f} ms"
    if seconds < 59.95:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02}s"
    return f"{minutes // 60}h {minutes % 60:02}m"


def clock(nanoseconds: int, now: datetime) -> str:
    """A moment on this machine's clock, with the date where that is not today's."""
    moment = datetime.fromtimestamp(nanoseconds / 1e9).astimezone()
    text = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03}"
    return text if moment.date() == now.date() else f"{moment:%Y-%m-%d} {text}"
