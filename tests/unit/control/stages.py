"""A scheduler with runners that are fakes, for tests of its shell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from headrace_server.scheduling.shell import Scheduler
from headrace_server.scheduling.state import Limits, Phase
from headrace_server.scheduling.ticket import Runner, Wanted
from tests.unit.control.fakes import Context, FakeLauncher, FakeModel, FakeRunner


async def silent(runner: FakeRunner, request: Any, context: Context) -> AsyncIterator[Any]:
    return
    yield


class Launcher(FakeLauncher):
    """One whose runners say what they hold."""

    memory: int | None = None
    """What each says; None: as much as was estimated."""

    async def measure(self, runner: Runner, wanted: Wanted) -> int | None:
        return await super().measure(runner, wanted) if self.memory is None else self.memory


class Stage:
    """A scheduler whose changes a test can wait for."""

    def __init__(self, folder: Path, memory_interval: float = 0.01) -> None:
        self.launcher = Launcher(folder, silent)
        self.short = 0
        self.told = 0
        """How often who watches was told of a change."""
        self._news = asyncio.Event()
        self.scheduler = Scheduler(
            Limits(100, max_crashes=3),
            self.launcher,
            self._tell,
            shortage=lambda: self.short,
            memory_interval=memory_interval,
        )

    def _tell(self) -> None:
        self.told += 1
        self._news.set()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not true():
                self._news.clear()
                await self._news.wait()

    def phases(self, key: str = FakeModel().key) -> list[Phase]:
        return [slot.phase for slot, _ in self.scheduler.runners_of(key)]
