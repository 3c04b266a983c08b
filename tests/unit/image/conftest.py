"""The painter as the one family there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace_runner.models import families
from tests.painter import save_painter
from tests.unit.image.serving import Served, serving


@pytest.fixture
def painter_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(families, "FAMILIES", ("tests.painter:FAMILY",))
    return save_painter(tmp_path / "model")


@pytest.fixture
async def served(painter_dir: Path, tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(painter_dir, tmp_path / "r.sock") as served:
        yield served
