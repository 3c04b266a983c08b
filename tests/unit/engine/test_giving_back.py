"""What an idle engine holds on to."""

from __future__ import annotations

import ctypes

import mlx.core as mx
import psutil
import pytest

from headrace_runner.engine.memory import give_back

MIB = 1 << 20


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library keeps nothing"
)
def test_what_was_freed_between_what_is_used_goes_back() -> None:
    process = psutil.Process()
    # Small enough to lie side by side in the C library's own store.
    arrays = [mx.zeros(24_000) + number for number in range(2000)]
    mx.eval(arrays)
    used = process.memory_info().rss
    kept = arrays[::50]
    del arrays
    give_back()
    assert process.memory_info().rss < used - 100 * MIB
    assert kept[-1][0].item() == 1950.0
