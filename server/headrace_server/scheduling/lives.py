"""One runner as a task: started, loaded, looked at while it is used, and reaped."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from headrace.errors import HeadraceError, LoadFailed
from headrace.telemetry.outcome import kind_of
from headrace_server import measures
from headrace_server.runners.diagnosis import Death, load_error
from headrace_server.scheduling.loading import Load
from headrace_server.scheduling.state import Why
from headrace_server.scheduling.ticket import Life, Runner, Wanted

logger = logging.getLogger(__name__)

STOP_GRACE = 2.0
"""Seconds for a runner without requests to exit before it is killed."""

_DEATH_SHOWS = 1.0
"""Seconds in which it shows that a runner is dead that has not said what it holds."""


class Launcher(Protocol):
    """Turns an order into a process."""

    async def launch(self, runner_id: str, wanted: Wanted, load: Load) -> Runner:
        """Start a runner; what is said of it belongs to the load. Raises HeadraceError where that
        cannot even be tried."""

    async def measure(self, runner: Runner, wanted: Wanted) -> int | None:
        """Bytes that a loaded runner holds, by its own report; None: it does not say."""


class Told(Protocol):
    """Who is told how a runner does: the scheduler."""

    def serves(self, life: Life, memory: int | None) -> None:
        """It serves, and holds so many bytes if it says so."""

    def holds(self, life: Life, memory: int) -> None:
        """It holds so many bytes now."""

    def is_used(self, life: Life) -> bool:
        """Whether requests use it."""

    def ended(self, life: Life, cause: str, error: HeadraceError) -> None:
        """It is no more, by this cause; one who waits for it is told this error."""

    def now(self) -> float:
        """Seconds on the clock that the times of lives are of."""


async def live(life: Life, launcher: Launcher, told: Told, memory_interval: float) -> None:
    """A runner's life, until there is nothing left of it. `life.stop` ends it. `memory_interval`:
    seconds between two looks at what it holds."""
    cause: str = "EXITED"
    error: HeadraceError = LoadFailed("the model could not be loaded", cause=cause)
    try:
        death = await _run(life, launcher, told, memory_interval)
        life.load.died(death)
        cause, error = death.cause, load_error(death, life.wanted.name)
    except HeadraceError as failure:
        life.load.failed(kind_of(failure), failure.message)
        logger.warning("not started: %s", failure, extra={"model": life.wanted.name})
        cause, error = "LOAD_FAILED", failure
    except Exception:  # a bug, which those who wait must not pay for by waiting on
        logger.exception("runner %s", life.id, extra={"model": life.wanted.name})
    finally:
        life.load.failed(cause, error.message)
        _measure_end(life, cause, told.now())
        life.why = life.why or cause
        told.ended(life, cause, error)
        life.gone.set()


def _measure_end(life: Life, cause: str, now: float) -> None:
    name = life.wanted.name
    if life.stop.is_set():
        measures.unloaded(name, life.why or Why.DRAINED)
        return
    if life.loaded_at is None:
        measures.not_loaded(name, now - life.started_at, life.load.error)
    if life.runner is not None and life.runner.pid is not None:  # Else there was no process.
        measures.crashed(name, cause)


async def _run(life: Life, launcher: Launcher, told: Told, memory_interval: float) -> Death:
    runner = life.runner = await launcher.launch(life.id, life.wanted, life.load)
    serving = asyncio.create_task(_serve(life, runner, launcher, told))
    stop = asyncio.create_task(life.stop.wait())
    ends: set[asyncio.Task[Any]] = {runner.dead, stop}
    own: list[asyncio.Task[Any]] = [serving, stop]
    try:
        await asyncio.wait({serving, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done() and not runner.dead.done():
            serving.result()
            watching = _watch_memory(life, runner, launcher, told, memory_interval)
            own.append(asyncio.create_task(watching))
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)
        death = await runner.stop(STOP_GRACE)
    return death


async def _serve(life: Life, runner: Runner, launcher: Launcher, told: Told) -> None:
    await runner.ready()
    memory = await launcher.measure(runner, life.wanted)
    if memory is None:
        # Perhaps it is dead, which shows in a moment: nobody is to be given a corpse.
        await asyncio.wait({runner.dead}, timeout=_DEATH_SHOWS)
        if runner.dead.done():
            return
    told.serves(life, memory)


async def _watch_memory(
    life: Life, runner: Runner, launcher: Launcher, told: Told, interval: float
) -> None:
    """Look at what a runner holds, now and then while it is used. An idle one does not grow."""
    while True:
        await life.used.wait()
        await asyncio.sleep(interval)
        life.used.clear()
        try:
            memory = await launcher.measure(runner, life.wanted)
            if memory is not None:
                told.holds(life, memory)
        except Exception:  # a bug, which is not to end the looks
            logger.exception("runner %s was not measured", life.id)
        if told.is_used(life):
            life.used.set()
