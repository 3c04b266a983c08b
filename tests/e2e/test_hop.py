"""Thousands of streams through the controller: none is short, and nothing of them stays."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bench import hop


@dataclass(frozen=True)
class Place:
    """Where the controller has its models and its socket."""

    home: Path
    sockets: Path


@pytest.fixture
def place(model_home: Path) -> Iterator[Place]:
    sockets = Path(tempfile.mkdtemp(prefix="hrt-", dir="/tmp"))
    yield Place(model_home, sockets)
    shutil.rmtree(sockets)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_many_streams_leave_nothing(place: Place) -> None:
    *_, controller = await hop.measure(place, 3000, lambda text: print(text, file=sys.stderr))
    assert len(controller.resident) == 3
    assert controller.resident[-1] <= controller.resident[0] * hop.GROWTH
