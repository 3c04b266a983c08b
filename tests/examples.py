"""How much of what is random the tests look at: a third, or all where time does not count."""

from __future__ import annotations

import os

THOROUGH = bool(os.environ.get("HEADRACE_TEST_THOROUGH"))
"""Whether time does not count. `make test-slow` says so."""


def examples(whole: int) -> int:
    """So many examples, or a third of them."""
    return whole if THOROUGH else max(1, whole // 3)
