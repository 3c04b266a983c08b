"""A short chaos run; `make chaos` has the long one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.chaos.report import show
from tests.chaos.run import Plan, run


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_c1_streams_outlive_their_runners(model_home: Path) -> None:
    plan = Plan(model_home, kills=12, tokens=24, seed=4, limit=840.0)
    result = await run(plan, lambda text: print(text, file=sys.stderr))
    show(result, Console(file=sys.stderr, width=100))
    assert not result.failed
    assert result.tally.completed >= plan.greedy + plan.seeded
    assert result.tally.moves >= result.kills - result.kills_in_load
