"""A spare runner at a controller: taken, replaced, and gone with it."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress

import psutil

from headrace import AsyncClient
from tests.e2e.conftest import TINY
from tests.e2e.harness import PATIENCE, Controller, StartController, gone

SPARE = "--spare"


def spares(controller: Controller) -> list[psutil.Process]:
    """Its processes that were started as spares, taken or not."""
    found = []
    for process in controller.runners():
        with suppress(psutil.Error):  # It may end as it is looked at.
            if SPARE in process.cmdline():
                found.append(process)
    return found


async def another(controller: Controller, *known: psutil.Process) -> psutil.Process:
    """The spare that comes beside those that are known."""
    async with asyncio.timeout(PATIENCE):
        while not (new := [one for one in spares(controller) if one not in known]):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.02)
    (spare,) = new
    return spare


async def runner_pid(client: AsyncClient, model: str) -> int:
    (runner,) = (await client.get_model(model)).runners
    return runner.pid


async def test_the_next_load_takes_the_spare(start: StartController) -> None:
    controller = start(SPARE)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        assert spares(controller) == []  # none before a first load
        first = await client.complete(TINY, "fox", temperature=0, max_tokens=4)
        spare = await another(controller)
        psutil.Process(await runner_pid(client, TINY)).kill()
        # The runner that takes its place is the spare, and answers the same.
        again = await client.complete(TINY, "fox", temperature=0, max_tokens=4)
        assert again.text == first.text
        assert again.started.runner == "r2"
        assert await runner_pid(client, TINY) == spare.pid
        # Its log is that of the runner which it became.
        serving = await controller.logged(count=2, message="serving")
        assert [line["runner_id"] for line in serving] == ["r1", "r2"]
        # The load is part of its request's trace, which came with the orders.
        assert serving[1]["trace_id"] != serving[0]["trace_id"]
        other = await another(controller, spare)
        controller.send(signal.SIGTERM)
        assert await asyncio.to_thread(controller.wait) == 0
    assert gone([spare, other], 0.1)
    assert controller.processes() == []
    assert list(controller.sockets.iterdir()) == []


async def test_c5_a_killed_controller_leaves_no_spare(start: StartController) -> None:
    controller = start(SPARE)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        await client.load_model(TINY)
        spare = await another(controller)
    controller.kill()
    assert await asyncio.to_thread(gone, [spare], 2.0)
