"""What the controller and the SDK cost, and what they never load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from headrace.client import Client
from headrace.errors import InvalidRequest
from tests.e2e.conftest import TINY
from tests.e2e.harness import MODEL, PATIENCE, Controller, StartController


def mapped(pid: int) -> set[str]:
    """The folders under site-packages of the native libraries that a process has loaded."""
    words = Path(f"/proc/{pid}/maps").read_text().split()
    return {word.split("/site-packages/")[1].split("/")[0] for word in words if "/site-p" in word}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_controller_loads_no_mlx_and_stays_small(start: StartController) -> None:
    controller = start()
    with Client(controller.target, timeout=PATIENCE) as client:
        for _ in range(5):
            client.complete(TINY, "x", max_tokens=20)
    heavy = {"mlx", "numpy", "tokenizers", "torch", "transformers", "scipy_openblas32"}
    assert heavy.isdisjoint(mapped(controller.pid))
    assert heavy & mapped(controller.runner().pid)  # so that this can fail
    assert resident(controller) < 80_000_000


def test_requests_that_are_refused_are_not_kept(start: StartController) -> None:
    controller = start()
    with Client(controller.target, timeout=PATIENCE) as client:
        for _ in range(12):
            with pytest.raises(InvalidRequest):
                client.complete(MODEL, "x" * 20_000_000)
    # What reading one takes, and what the allocator keeps of it; not twelve of them.
    assert resident(controller) < 320_000_000


def resident(controller: Controller) -> int:
    return psutil.Process(controller.pid).memory_info().rss


def fresh(program: str) -> str:
    """The output of a new process."""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return ended.stdout


def test_importing_the_sdk_is_quick_and_light() -> None:
    modules = fresh("import headrace, sys; headrace.Client; print(*sys.modules)").split()
    for heavy in ("mlx", "click", "rich", "numpy", "opentelemetry.sdk", "headrace_server"):
        assert heavy not in modules
    assert "headrace.client" in modules

    def seconds(program: str) -> float:
        """Of computing, which other processes hardly change."""
        before = os.times()
        fresh(program)
        after = os.times()
        return (
            after.children_user
            - before.children_user
            + after.children_system
            - before.children_system
        )

    # The whole process, less what an empty one takes.
    empty = min(seconds("pass") for _ in range(3))
    whole = min(seconds("import headrace; headrace.Client") for _ in range(3))
    assert whole - empty < 0.5


def test_the_controller_computes_less_than_a_second_to_be_up(controller: Controller) -> None:
    def seconds() -> float:
        with Controller(controller.home) as started:
            spent = psutil.Process(started.pid).cpu_times()
            return float(spent.user + spent.system)

    assert min(seconds() for _ in range(3)) < 1.0
