"""The scheduler's shell and the time, by a clock that the test puts forward."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from headrace.errors import CircuitOpen, LoadFailed
from headrace_server.scheduling import shell
from headrace_server.scheduling.core import decide
from headrace_server.scheduling.state import Limits, Phase, Policy
from tests.unit.control.fakes import FakeModel
from tests.unit.control.stages import Stage


class Clock:
    """The event loop's, put forward at will."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead = 0.0
        loop = asyncio.get_running_loop()
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + self._ahead)

    def forward(self, seconds: float) -> None:
        self._ahead += seconds


@pytest_asyncio.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    # Whose looks at memory bring no events meanwhile.
    stage = Stage(tmp_path, memory_interval=1e9)
    yield stage
    await stage.scheduler.close()


async def test_c8_a_model_that_never_gets_ready_is_tried_so_often_and_disturbs_no_other(
    stage: Stage, clock: Clock
) -> None:
    scheduler, limits = stage.scheduler, Limits(100)
    scheduler.set_limits(limits)
    with scheduler.ask(FakeModel("other", needs=10)) as other:
        await other.granted()
        served = await stage.launcher.launched.get()
        stage.launcher.hold = True
        with scheduler.ask(FakeModel("stuck", needs=10)) as ticket:
            for _ in range(limits.max_crashes):
                runner = await stage.launcher.launched.get()
                ((_, life),) = scheduler.runners_of("stuck")
                clock.forward(300.0)  # As long as a load may go without progress.
                await runner.die("STALLED")
                await life.gone.wait()
                clock.forward(4 * limits.backoff)
            with pytest.raises(LoadFailed) as failed:
                await ticket.granted()
            assert failed.value.metadata == {"cause": "STALLED"}
        with scheduler.ask(FakeModel("stuck", needs=10)) as ticket, pytest.raises(CircuitOpen):
            await ticket.granted()
        assert stage.phases("other") == [Phase.SERVING]
        assert not served.dead.done()
        clock.forward(limits.cooldown)
        stage.launcher.hold = False
        with scheduler.ask(FakeModel("stuck", needs=10)) as ticket:
            await ticket.granted()


async def test_what_becomes_due_while_orders_are_carried_out_is_not_slept_over(
    stage: Stage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any) -> Any:
        decided = decide(*arguments)
        clock.forward(1.0)
        return decided

    with stage.scheduler.ask(FakeModel(policy=Policy(keep_alive=0.5))) as ticket:
        await ticket.granted()
        monkeypatch.setattr(shell, decide.__name__, slow)
    await stage.until(lambda: not stage.scheduler.runners())
