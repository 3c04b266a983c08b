"""When who watches is told that something has changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from headrace_server.scheduling import shell
from tests.unit.control.fakes import FakeModel
from tests.unit.control.stages import Stage


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path, memory_interval=1e9)
    yield stage
    await stage.scheduler.close()


async def test_of_requests_alone_who_watches_is_told_now_and_then(stage: Stage) -> None:
    async def one() -> None:
        with stage.scheduler.ask(FakeModel()) as ticket:
            await ticket.granted()
            await asyncio.sleep(0)

    await one()
    began, before = stage.scheduler.now(), stage.told
    for _ in range(50):
        await one()
    seen, seconds = stage.told, stage.scheduler.now() - began
    assert seen - before <= 2 + seconds / shell.TELLING_INTERVAL
    await stage.until(lambda: stage.told > seen)  # The last is not forgotten.


async def test_who_watches_is_told_at_once_of_all_else(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "TELLING_INTERVAL", 1e6)
    with stage.scheduler.ask(FakeModel()) as ticket:
        await ticket.granted()
        seen = stage.told
        await stage.launcher.runners[-1].die("SIGNAL")
        await stage.until(lambda: stage.told > seen and not stage.scheduler.runners())
