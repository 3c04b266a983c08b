"""Which runners serve a model whose type of weights goes by the memory budget."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.host.kernels import Kernels
from headrace_server.app import App
from headrace_server.config import ServerConfig
from headrace_server.hosting import Hosting
from headrace_server.runners.spares import Activity
from headrace_server.scheduling.planner import Planner
from headrace_server.store import Store
from tests.unit.control.fakes import FakeLauncher, put_manifest
from tests.unit.control.stages import silent
from tests.unit.host.machines import LINUX_CPU

GIB = 1 << 30
ROOMY, TIGHT = 2 * GIB, GIB


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A store with a model that takes 0.8 GB as float32, and hardly anything as it is stored."""
    put_manifest(tmp_path, "words", "text")
    manifest = tmp_path / "models" / "words" / "latest.json"
    text = manifest.read_text()
    assert '"parameters": 50' in text
    manifest.write_text(text.replace('"parameters": 50', '"parameters": 200000000'))
    return tmp_path


async def test_runners_of_another_type_of_weights_have_another_key(home: Path) -> None:
    store, unknown = Store(home), asyncio.create_task(asyncio.Event().wait())
    hosting: Any = unknown  # Not known yet, as at the start of a controller.
    config = ServerConfig(home=home)
    planner = Planner(config, store, hosting, ROOMY, lambda _: None, lambda: Activity.QUIET)
    manifest = store.get("words")

    def key(dtype: Any, memory: int) -> str:
        planner.set_config(replace(config, dtype=dtype), memory)
        return planner.key(manifest)

    assert key("auto", ROOMY) != key("auto", TIGHT)
    assert key("auto", ROOMY) == key("auto", 2 * ROOMY)
    for dtype in ("stored", "float32"):
        assert key(dtype, ROOMY) == key(dtype, TIGHT)
    # Where there are no kernels for it, the budget decides here too.
    assert key("int8", ROOMY) != key("int8", TIGHT)
    assert len({key(dtype, ROOMY) for dtype in ("auto", "int8", "float32", "stored")}) == 4
    unknown.cancel()


@pytest.mark.parametrize("known", [False, True])
async def test_the_budget_is_nothing_to_what_the_kernels_compute(
    home: Path, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace_server.scheduling.planner.why_none", lambda: "")
    go = asyncio.Event()

    async def host() -> Hosting:
        await go.wait()
        return Hosting(LINUX_CPU, {}, has_blas=True, kernels=Kernels("avx2"), problem="")

    store, hosting = Store(home), asyncio.create_task(host())
    config = ServerConfig(home=home)
    planner = Planner(config, store, hosting, ROOMY, lambda _: None, lambda: Activity.QUIET)
    manifest = store.get("words")
    if known:
        go.set()
        await hosting

    def key(dtype: Any, memory: int) -> str:
        planner.set_config(replace(config, dtype=dtype), memory)
        return planner.key(manifest)

    assert key("auto", ROOMY) != key("auto", TIGHT)  # It is not known to be quantised.
    directory = store.path(manifest)
    directory.mkdir(parents=True)
    quantised = {"quantization": {"bits": 4, "group_size": 32}}
    (directory / "config.json").write_text(json.dumps(quantised))
    for dtype in ("auto", "int8"):
        assert key(dtype, ROOMY) == key(dtype, TIGHT)
    planner.set_config(config, TIGHT)
    before = planner.key(manifest)
    go.set()
    assert (await planner.plan(manifest)).key == planner.key(manifest) == before


async def test_a_budget_that_changes_the_type_of_weights_changes_the_runner(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = FakeLauncher(home, silent)
    monkeypatch.setattr(Planner, "launch", lambda _, *arguments: launcher.launch(*arguments))
    monkeypatch.setattr(Planner, "measure", lambda _, *arguments: launcher.measure(*arguments))
    listen = f"unix:{home}/c.sock"
    config = ServerConfig(listen=listen, home=home, memory=ROOMY, preload=("words",))
    app = App(config)
    try:
        async with asyncio.timeout(30):
            await app.start()
            first = await launcher.launched.get()
            await app.reconfigure(replace(config, memory=2 * ROOMY))
            await app.reconfigure(replace(config, memory=TIGHT))
            second = await launcher.launched.get()
            await asyncio.wait({first.dead})
        assert not second.dead.done()
        assert launcher.launched.empty()
    finally:
        await app.close()
