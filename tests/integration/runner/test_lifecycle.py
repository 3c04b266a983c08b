"""How a runner's process starts and ends."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.errors import Draining
from headrace.host.handover import Failed, Listening, Loading, Ready
from headrace.v1.common_pb2 import RunnerState
from tests.integration.runner.api import ENDLESS, MODEL, connected, prompt
from tests.integration.runner.child import child_environment, started
from tests.integration.runner.conftest import ServeTiny


async def test_requests_wait_for_the_load(model_home: Path, smollm2_dir: Path) -> None:
    with started(model_home, smollm2_dir, "--name", MODEL) as child:
        listening = await asyncio.to_thread(child.hear, Listening)
        assert listening.pid == child.process.pid
        assert child.socket.stat().st_mode & 0o777 == 0o600
        async with connected(child.address) as api:
            waiting = asyncio.ensure_future(api.complete(prompt("One, two,", 2)))
            runner = await api.describe()
            assert runner.state == RunnerState.RUNNER_STATE_LOADING
            assert not await api.healthy()
            assert len((await waiting).token_ids) == 2
            assert await api.healthy("headrace.v1.CompletionService")
            await asyncio.to_thread(child.hear, Ready)
        fractions = [r.fraction for r in child.reports if isinstance(r, Loading)]
        assert fractions == sorted(fractions)
        assert fractions[-1] > 0.98
        assert len(fractions) > 5


async def test_sigterm_finishes_what_runs(serve_tiny: ServeTiny) -> None:
    with serve_tiny() as child:
        async with connected(child.address) as api:
            stream = api.stream(prompt("fox", 1500, stop=ENDLESS))
            await stream.until("delta")
            child.signal(signal.SIGTERM)
            await api.watch_until(lambda r: r.state == RunnerState.RUNNER_STATE_DRAINING)
            assert not await api.healthy()
            with pytest.raises(Draining):
                await api.complete(prompt("fox", 1))
            assert len((await stream.rest()).token_ids) == 1500
        assert await asyncio.to_thread(child.exit_code) == 0
        assert not child.socket.exists()
        assert child.reports[-1] == Ready()


async def test_a_second_sigterm_ends_what_runs(serve_tiny: ServeTiny) -> None:
    with serve_tiny() as child:
        async with connected(child.address) as api:
            stream = api.stream(prompt("fox", 90_000, stop=ENDLESS))
            await stream.until("delta")
            child.signal(signal.SIGTERM)
            await api.watch_until(lambda r: r.state == RunnerState.RUNNER_STATE_DRAINING)
            child.signal(signal.SIGTERM)
            with pytest.raises(Draining):
                await stream.rest()
        assert await asyncio.to_thread(child.exit_code) == 0


async def test_the_grace_ends_what_runs(serve_tiny: ServeTiny) -> None:
    with serve_tiny("--grace", "0.2") as child:
        async with connected(child.address) as api:
            stream = api.stream(prompt("fox", 90_000, stop=ENDLESS))
            await stream.until("delta")
            child.signal(signal.SIGTERM)
            with pytest.raises(Draining):
                await stream.rest()
        assert await asyncio.to_thread(child.exit_code) == 0


def test_sigterm_while_loading_is_a_clean_end(model_home: Path, smollm2_dir: Path) -> None:
    with started(model_home, smollm2_dir) as child:
        child.hear(Listening)
        child.signal(signal.SIGTERM)
        assert child.exit_code() == 0
        assert not [report for report in child.reports if isinstance(report, Failed)]
        assert '"level":"CRITICAL"' not in child.log.upper().replace(" ", "")
        assert "Traceback" not in child.log


def test_the_end_of_stdin_ends_it(serve_tiny: ServeTiny) -> None:
    with serve_tiny() as child:
        child.end_stdin()
        assert child.exit_code() == 0
        assert not child.socket.exists()


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headrace_runner", *arguments],
        env=child_environment(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_says_how_to_use_it(model_home: Path) -> None:
    result = run(model_home, "--help")
    assert result.returncode == 0
    assert "--model DIR" in result.stdout
    assert "--report-fd" not in result.stdout  # It is for the controller.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "0.0.0.0:0"], "--insecure"),
        (["--listen", "[::]:0"], "--insecure"),
        (["--listen", "example.org:1"], "--insecure"),
        (["--listen", "127.0.0.1:99999"], "--listen"),
        (["--listen", "127.0.0.1"], "--listen"),
        (["--listen", "127.0.0.1:http"], "--listen"),
        (["--listen", "unix:"], "--listen"),
        (["--context", "0"], "--context"),
        (["--grace", "-1"], "--grace"),
        (["--model", "/no/such/folder"], "--model"),
        (["--blas", "/no/such/library.so"], "--blas"),
    ],
)
def test_wrong_arguments_are_refused(
    model_home: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = run(model_home, "--model", str(tmp_path), *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_insecure_allows_what_is_not_loopback(serve_tiny: ServeTiny) -> None:
    with serve_tiny("--listen", "0.0.0.0:0", "--insecure") as child:
        assert child.address.startswith("0.0.0.0:")
