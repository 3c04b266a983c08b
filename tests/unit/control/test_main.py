"""What the process does of its settings."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
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


def _grpc_experiments(**environment: str) -> tuple[str, str]:
    """What the program has set, and what gRPC says of it."""
    code = (
        "import os, headrace_server.__main__, grpc; grpc.insecure_channel('localhost:1'); "
        "print(os.environ['GRPC_EXPERIMENTS'])"
    )
    base = {key: value for key, value in os.environ.items() if not key.startswith("GRPC_")}
    done = subprocess.run(
        (sys.executable, "-c", code),
        env={**base, "GRPC_VERBOSITY": "ERROR", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="gRPC stays as it is elsewhere")
def test_grpc_polls_without_its_event_engine() -> None:
    experiments, said = _grpc_experiments()
    assert "-event_engine_client" in experiments.split(",")
    assert "Unknown experiment" not in said, "this release of gRPC knows them by other names"


def test_who_has_settings_of_grpc_keeps_them() -> None:
    experiments, said = _grpc_experiments(GRPC_EXPERIMENTS="of_the_user")
    assert experiments == "of_the_user"
    assert "Unknown experiment: of_the_user" in said
