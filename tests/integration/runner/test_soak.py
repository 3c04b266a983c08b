"""Two thousand requests in a row, a third of them cancelled, leave a runner's memory as it was."""

from __future__ import annotations

import pytest

from tests.bench.soak import soak
from tests.integration.runner.api import MODEL
from tests.integration.runner.conftest import ServeTiny

PREFIX_CACHE = 1 << 20
"""Bytes: two thousand tokens of the tiny model, so that it is full long before memory settles."""


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_memory_stays(serve_tiny: ServeTiny) -> None:
    with serve_tiny("--max-concurrency", "16", "--prefix-cache", str(PREFIX_CACHE)) as child:
        report = await soak(child.address, MODEL, 2000, settled_after=200, patience=0.05)
    assert report.cancelled > 500
    assert 0 < report.end.prefixes <= PREFIX_CACHE
    # A row's keys and values take a tenth of a megabyte: ten rows that are left show here.
    assert report.end.active < report.settled.active + (1 << 20)
    # The process as a whole breathes by some percent, as it is small: 16 MB are 9 KB a request.
    assert report.end.resident < report.settled.resident + (16 << 20), report
