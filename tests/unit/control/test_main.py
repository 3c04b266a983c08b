"""What the process does of its settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from headrace_server.app import App
from headrace_server.config import Effective, ServerConfig, Sources
from headrace_server.main import reread


class Faulty(Sources):
    """They cannot be read the first time, for a reason that nobody has thought of."""

    def __init__(self, home: Path, again: Callable[[], object]) -> None:
        super().__init__(["--home", str(home)], {})
        self._again: Callable[[], object] | None = again

    def read(self) -> Effective:
        if self._again is not None:
            self._again()
            self._again = None
            raise RuntimeError("broken on purpose")
        return super().read()


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    app = App(ServerConfig(listen=f"unix:{tmp_path}/c.sock", home=tmp_path, memory=1 << 30))
    yield app
    await app.close()


async def test_a_bug_in_the_reading_of_settings_leaves_the_next_reading(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taken = asyncio.Event()

    async def reconfigure(_: ServerConfig) -> None:
        taken.set()

    monkeypatch.setattr(app, "reconfigure", reconfigure)
    wanted = asyncio.Event()
    loop = asyncio.get_running_loop()
    sources = Faulty(tmp_path, lambda: loop.call_soon_threadsafe(wanted.set))
    wanted.set()
    task = asyncio.create_task(reread(wanted, sources, app))
    await asyncio.wait_for(taken.wait(), 10)
    task.cancel()
    await asyncio.wait([task])
    assert "broken on purpose" in caplog.text
