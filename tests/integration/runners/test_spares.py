"""Spare runners as real processes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable

import psutil
import pytest

from headrace_server.runners import spares
from headrace_server.runners.lifecycle import State
from headrace_server.runners.spares import Activity, Spares
from headrace_server.runners.spec import RunnerSpec
from tests.integration.runners.support import Supervise, Watched

Supervised = tuple[Watched, Spares]


@pytest.fixture
def activity() -> list[Activity]:
    """What goes on: the last one counts."""
    return [Activity.LOADING]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QUIET", "PATIENCE", "BACKOFF"):
        monkeypatch.setattr(spares, name, 0.01)


@pytest.fixture
def supervised(
    supervise: Supervise, activity: list[Activity], quick: None
) -> Callable[[str], Supervised]:
    def make(mode: str) -> Supervised:
        watched = supervise(mode, activity=lambda: activity[-1])
        kept = watched.supervisor.spares
        assert kept is not None
        return watched, kept

    return make


async def spare_of(kept: Spares, but: int | None = None) -> int:
    """The id of the spare once there is one, another than `but`."""
    async with asyncio.timeout(30):
        while kept.pid in (None, but):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    assert kept.pid is not None
    return kept.pid


async def test_a_load_takes_the_spare_and_another_is_made(
    supervised: Callable[[str], Supervised], activity: list[Activity], spec: RunnerSpec
) -> None:
    watched, kept = supervised("serve")
    kept.look()
    assert kept.pid is None  # a load is under way
    activity.append(Activity.QUIET)
    kept.look()
    pid = await spare_of(kept)
    runner = watched.start(spec)
    await asyncio.wait_for(runner.ready(), 30)
    assert (runner.pid, runner.state) == (pid, State.SERVING)
    other = await spare_of(kept, but=pid)
    assert other != pid
    assert (await runner.stop(grace=10)).expected
    await kept.close()
    assert not psutil.pid_exists(other)  # reaped


async def test_busy_or_not_it_comes(
    supervised: Callable[[str], Supervised], activity: list[Activity]
) -> None:
    _, kept = supervised("serve")
    activity.append(Activity.BUSY)
    kept.look()
    await spare_of(kept)


async def test_without_one_a_runner_starts_as_ever(
    supervised: Callable[[str], Supervised], spec: RunnerSpec
) -> None:
    watched, _ = supervised("serve")
    await asyncio.wait_for(watched.start(spec).ready(), 30)


async def test_one_that_dies_is_replaced(
    supervised: Callable[[str], Supervised], activity: list[Activity], spec: RunnerSpec
) -> None:
    watched, kept = supervised("serve")
    activity.append(Activity.QUIET)
    kept.look()
    first = await spare_of(kept)
    os.kill(first, signal.SIGKILL)
    second = await spare_of(kept, but=first)
    runner = watched.start(spec)
    await asyncio.wait_for(runner.ready(), 30)
    assert runner.pid == second


async def test_after_some_deaths_in_a_row_no_more_are_made(
    supervised: Callable[[str], Supervised],
    activity: list[Activity],
    spec: RunnerSpec,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    _, kept = supervised("bad-spare")
    activity.append(Activity.QUIET)
    kept.look()
    async with asyncio.timeout(60):
        while "no more are made" not in caplog.text:  # noqa: ASYNC110 - nothing else tells of it
            await asyncio.sleep(0.02)
    deaths = [r for r in caplog.records if "spare runner died" in r.getMessage()]
    assert len(deaths) == spares.MOST_DEATHS
    assert "broken on purpose" in vars(deaths[0])["detail"]
    kept.look()
    assert kept.pid is None


async def test_the_end_of_its_stdin_is_its_end(
    supervised: Callable[[str], Supervised], activity: list[Activity]
) -> None:
    """As when the controller is killed."""
    _, kept = supervised("serve")
    activity.append(Activity.QUIET)
    kept.look()
    await spare_of(kept)
    spare = kept.take()
    assert spare is not None
    assert spare.process.stdin is not None
    spare.process.stdin.close()
    assert await asyncio.wait_for(spare.process.wait(), 30) == 0
    spare.dispose()
