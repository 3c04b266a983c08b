"""What runners hold, and what happens when the machine itself runs short."""

from __future__ import annotations

from pathlib import Path

from headrace import AsyncClient
from tests.e2e.conftest import TINY
from tests.e2e.harness import PATIENCE, StartController, python_path

SHORT = """
import pathlib, sys

if "headrace_server" in sys.orig_argv:
    from headrace.host import machine

    short = pathlib.Path(__file__).with_name("short")

    def memory_available(found=machine.memory_available):
        return 0 if short.exists() else found()

    machine.memory_available = memory_available
"""
"""Read by every Python process of a controller, which is then told that no memory is available."""


async def test_a_machine_short_of_memory_loses_an_idle_model(
    tmp_path: Path, start: StartController
) -> None:
    path = python_path(tmp_path / "python", SHORT)
    controller = start(extra={"PYTHONPATH": path})
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        await client.load_model(TINY)
        (tmp_path / "python" / "short").touch()
        (gone,) = await controller.logged(to="dead")
        assert (gone["model"], gone["why"]) == (TINY, "PRESSURE")
        assert await client.list_models(loaded=True) == ()


async def test_a_loaded_runner_is_accounted_for_by_its_own_report(start: StartController) -> None:
    controller = start()
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        await client.load_model(TINY)
        (line,) = await controller.logged("loaded in", model=TINY)
        assert line["memory_bytes"] > 0
        (runner,) = (await client.get_model(TINY)).runners
        assert runner.memory_bytes == line["memory_bytes"]
