"""A chaos run: many streams against one controller, whose runners are killed at random moments."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Container
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from tests.chaos.footprint import Footprint, end, of_controller, settled
from tests.chaos.streams import Streams, Tally, requests
from tests.e2e.harness import MODEL, Controller
from tests.integration.runner.api import Api, connected

_LOOK = 0.02
"""Seconds between two looks for a process."""
_MEAN_PEACE = 5.0
"""Seconds between two kills, on average. They come at any moment: a Poisson process."""
_MOST_IN_LOAD = 2
"""Kills in a row of runners under which no stream went on. After one more the controller may well
give the model up, as one that cannot be loaded."""


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    home: Path
    """Of the store, which has the model."""
    kills: int = 200
    greedy: int = 16
    seeded: int = 16
    tokens: int = 32
    """Of a stream, at most."""
    seed: int = 0
    """Of the moments."""
    limit: float = 7200.0
    """Seconds for all of it."""


@dataclass
class Result:
    """What came of it."""

    plan: Plan
    tally: Tally
    seconds: float = 0.0
    kills: int = 0
    kills_in_load: int = 0
    """Part of `kills`: of a runner under which no stream had gone on yet."""
    recoveries: list[float] = field(default_factory=list)
    """Seconds from a kill until every stream had gone on, where no other kill came before."""
    before: Footprint | None = None
    after: Footprint | None = None
    left: list[str] = field(default_factory=list)
    """What was left behind, during the run or after the controller's end."""

    @property
    def failed(self) -> bool:
        """Whether anything was not as it has to be."""
        tally = self.tally
        return bool(tally.failures or tally.differences or self.left or not tally.completed)


async def run(plan: Plan, note: Callable[[str], None]) -> Result:
    """Runs it. Raises TimeoutError past the limit; no process is left then either."""
    began = time.monotonic()
    random = Random(plan.seed)
    async with asyncio.timeout(plan.limit), _controller(plan) as controller:
        async with connected(controller.target) as api:
            asked = requests(MODEL, plan.greedy, plan.seeded, plan.tokens)
            streams = Streams(api, asked)
            result = Result(plan, streams.tally)
            note(f"{len(asked)} streams undisturbed")
            await streams.undisturbed()
            result.before = await of_controller(controller)
            await _disturb(controller, streams, result, random, note)
            result.after = await _settled(controller, api, result.before)
            result.left += result.after.excess(result.before)
        result.left += await end(controller)
    result.seconds = time.monotonic() - began
    return result


@asynccontextmanager
async def _controller(plan: Plan) -> AsyncIterator[Controller]:
    def start() -> Controller:
        concurrency = str(plan.greedy + plan.seeded)
        options = ("--preload", MODEL, "--max-concurrency", concurrency)
        return Controller(plan.home, *options, program="tests.chaos.controller")

    controller = await asyncio.to_thread(start)
    try:
        yield controller
    finally:
        controller.close()


async def _disturb(
    controller: Controller,
    streams: Streams,
    result: Result,
    random: Random,
    note: Callable[[str], None],
) -> None:
    plan = result.plan
    in_load = 0
    killed: set[int] = set()
    async with asyncio.TaskGroup() as group:
        group.create_task(streams.renew(lambda: result.kills < plan.kills, random))
        await asyncio.sleep(random.expovariate(1 / _MEAN_PEACE))
        while True:
            runner = random.choice(await _runners(controller, killed))
            in_load = 0 if streams.advanced else in_load + 1
            result.kills_in_load += not streams.advanced
            streams.interrupt()
            with suppress(psutil.Error):
                runner.kill()
            killed.add(runner.pid)
            result.kills += 1
            if result.kills % 10 == 0:
                note(f"{result.kills} kills, {result.tally.completed} streams completed")
            if result.kills == plan.kills:
                break
            peace = random.expovariate(1 / _MEAN_PEACE)
            await _peace(streams, result, peace, whole=in_load >= _MOST_IN_LOAD)
        result.recoveries.append(await _recovery(streams))


async def _peace(streams: Streams, result: Result, seconds: float, *, whole: bool) -> None:
    """Lets so much time pass, and all that the streams need to go on if it is to be `whole`."""
    began = time.monotonic()
    with suppress(TimeoutError):
        async with asyncio.timeout(None if whole else seconds):
            result.recoveries.append(await _recovery(streams))
    await asyncio.sleep(max(0.0, seconds - (time.monotonic() - began)))


async def _recovery(streams: Streams) -> float:
    """Seconds until every stream has gone on."""
    began = time.monotonic()
    await streams.recovered()
    return time.monotonic() - began


async def _runners(controller: Controller, killed: Container[int]) -> list[psutil.Process]:
    """Its runners that were not killed yet, once there is one."""
    while True:
        runners = [one for one in controller.runners() if one.pid not in killed]
        if runners:
            return runners
        await asyncio.sleep(_LOOK)


async def _settled(controller: Controller, api: Api, before: Footprint) -> Footprint:
    """What it holds once the last runner that was killed has been cleared away."""
    await api.complete(requests(MODEL, 1, 0, 1)[0])
    return await settled(lambda: of_controller(controller), before)
