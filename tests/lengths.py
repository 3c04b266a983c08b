"""How long the slow tests go on: as long as they are meant to, or, where `HEADRACE_TEST_SHORT` is
set, as long as whoever waits for them can spare."""

from __future__ import annotations

import os


def length(full: int, short: int) -> int:
    """So many rounds of what a slow test repeats."""
    return short if os.environ.get("HEADRACE_TEST_SHORT") else full
