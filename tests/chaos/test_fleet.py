"""A soak in little: nothing grows and nothing is left of 32 streams through Envoy. `make soak` has
the long one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.chaos.fleet import Plan, run
from tests.lengths import length
from tests.tiny_home import tiny_home


@pytest.fixture
def home(model_home: Path, tmp_path: Path) -> Path:
    """A store with a model that costs little."""
    return tiny_home(model_home, tmp_path)


@pytest.mark.slow
@pytest.mark.toolchain
@pytest.mark.timeout(900)
async def test_nothing_grows_behind_envoy(home: Path, tmp_path: Path) -> None:
    plan = Plan(kills=length(24, 2), restarts=length(4, 1), seed=7)
    result = await run(plan, home, tmp_path)
    result.show(Console(file=sys.stderr, width=110))
    assert not result.failures
    assert not result.left
    assert result.completed >= 2 * plan.streams
    assert result.cut >= plan.streams
    assert result.moves >= plan.kills // 2
