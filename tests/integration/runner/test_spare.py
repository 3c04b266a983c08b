"""A runner that is started before there is a model for it."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from headrace.host.handover import Listening, Ready
from tests.integration.runner.api import MODEL, connected, prompt
from tests.integration.runner.child import Child, started

PATIENCE = 60.0


def at_rest(child: Child) -> psutil.Process:
    """The process once it has MLX and does nothing more for a second."""
    process = psutil.Process(child.process.pid)
    deadline = time.monotonic() + PATIENCE
    spent = -1.0
    while not has_mlx(process) or sum(process.cpu_times()[:2]) - spent > 0.02:
        assert time.monotonic() < deadline, f"it never rests:\n{child.log}"
        spent = sum(process.cpu_times()[:2])
        with pytest.raises(psutil.TimeoutExpired):
            process.wait(1.0)
    return process


def has_mlx(process: psutil.Process) -> bool:
    return any("libmlx" in Path(one.path).name for one in process.memory_maps())


async def test_a_spare_that_is_given_a_model_is_a_runner(model_home: Path, tiny_dir: Path) -> None:
    with started(model_home, tiny_dir, "--name", MODEL, spare=True) as child:
        assert child.reports == []
        child.go_on()
        assert child.hear(Listening).pid == child.process.pid
        child.hear(Ready)
        async with connected(child.address) as api:
            assert len((await api.complete(prompt("fox", 3))).token_ids) == 3
        child.signal(signal.SIGTERM)
        assert child.exit_code() == 0
        assert not child.socket.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads another process's memory map")
def test_a_waiting_spare_costs_little(model_home: Path, tiny_dir: Path) -> None:
    """Python, MLX and transformers without a model: nothing is computed, and no thread runs."""
    with started(model_home, tiny_dir, spare=True) as child:
        process = at_rest(child)
        assert process.num_threads() == 1
        assert process.memory_info().rss < 300e6  # some 100 MB; a model takes more


def test_the_end_of_its_stdin_is_a_clean_end(model_home: Path, tiny_dir: Path) -> None:
    with started(model_home, tiny_dir, spare=True) as child:
        child.end_stdin()
        assert child.exit_code() == 0
        assert child.log == ""


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        (b"hello", "bad orders"),
        (b'{"arguments": ["--context", "0"], "environment": {}}', "--context"),
    ],
)
def test_bad_orders_are_wrong_usage(
    model_home: Path, tiny_dir: Path, orders: bytes, message: str
) -> None:
    with started(model_home, tiny_dir, spare=True) as child:
        child.tell(orders + b"\n")
        assert child.exit_code() == 2
        assert message in child.log
        assert "Traceback" not in child.log
