"""What a runner asks of the system for itself, read back from the system; and its socket."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from pathlib import Path

import psutil
import pytest

from headrace.host.handover import Failed, Ready
from headrace_runner.limits import files_wanted, oom_score
from tests.integration.runner.api import MODEL, connected, prompt
from tests.integration.runner.child import serving, started

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads another process's limits")


def test_files_are_never_fewer_and_never_without_end() -> None:
    assert files_wanted(256, 4096) == 4096
    assert files_wanted(1024, 1 << 30) == 65_536
    assert files_wanted(1024, resource.RLIM_INFINITY) == 65_536
    assert files_wanted(100_000, resource.RLIM_INFINITY) == 100_000
    assert files_wanted(resource.RLIM_INFINITY, resource.RLIM_INFINITY) == resource.RLIM_INFINITY


def test_the_kernel_is_to_take_a_runner_before_its_controller() -> None:
    assert oom_score(0) > 0
    assert oom_score(-500) > -500
    assert oom_score(1000) == 1000


@linux
@pytest.mark.parametrize("spare", [False, True], ids=["started", "spare"])
def test_the_limits_of_a_runner(model_home: Path, tiny_dir: Path, spare: bool) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))  # what it inherits
    inherited = int(Path("/proc/self/oom_score_adj").read_text())
    with started(model_home, tiny_dir, spare=spare) as child:
        if spare:
            child.go_on()
        child.hear(Ready)
        process = psutil.Process(child.process.pid)
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, hard)
        soft, most = process.rlimit(psutil.RLIMIT_NOFILE)
        assert soft == most or soft >= 65_536
        score = int(Path(f"/proc/{process.pid}/oom_score_adj").read_text())
        assert score == oom_score(inherited)
        policies = {os.sched_getscheduler(thread.id) for thread in process.threads()}
        assert policies == {os.SCHED_BATCH}


@linux
@pytest.mark.parametrize("spare", [False, True], ids=["started", "spare"])
def test_core_dumps_can_be_allowed(model_home: Path, tiny_dir: Path, spare: bool) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    with started(model_home, tiny_dir, "--core-dumps", spare=spare) as child:
        if spare:
            child.go_on()
        child.hear(Ready)
        limits = psutil.Process(child.process.pid).rlimit(psutil.RLIMIT_CORE)
        assert limits == (hard, hard)


async def test_never_two_runners_over_one_socket(model_home: Path, tiny_dir: Path) -> None:
    with serving(model_home, tiny_dir, "--name", MODEL) as first:
        with started(model_home, tiny_dir, "--listen", f"unix:{first.socket}") as second:
            failed = await asyncio.to_thread(second.hear, Failed)
            assert "in use" in failed.message
            assert await asyncio.to_thread(second.exit_code) == 1
        # The first has kept its socket, and serves on.
        async with connected(first.address) as api:
            assert len((await api.complete(prompt("fox", 3))).token_ids) == 3
