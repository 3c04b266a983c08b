"""What those who watch are told of real processes: loads, deaths, evictions, models that go."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from headrace import AsyncClient, AsyncModelWatch
from headrace.errors import Draining
from headrace.types import ModelDeleted, ModelsEvent, WatchCheckpoint
from tests.e2e.conftest import TINY
from tests.e2e.harness import PATIENCE, Controller, StartController, start_headrace

LIFE = ("starting", "loading", "serving")


async def states(
    watch: AsyncModelWatch, runner: str, until: tuple[str, str]
) -> Sequence[tuple[str, str]]:
    """The states of a runner and their reasons, each once in a row, up to this one."""
    told: list[tuple[str, str]] = []
    async with asyncio.timeout(PATIENCE):
        async for _ in watch:
            for found in (r for model in watch.models for r in model.runners if r.id == runner):
                now = (str(found.state), found.reason)
                if not told or now != told[-1]:
                    told.append(now)
            if told and told[-1] == until:
                return told
    raise AssertionError("unreachable")


def transitions(controller: Controller, runner: str) -> list[tuple[str, str, str]]:
    """What the log says of a runner."""
    return [
        (line["from"], line["to"], line["why"])
        for line in controller.log()
        if line.get("runner_id") == runner and "from" in line
    ]


async def test_every_change_of_a_model_is_told_and_logged(
    home: Path, start: StartController
) -> None:
    controller = start(home=home)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        async with client.watch_models() as watch:
            loading = asyncio.create_task(client.load_model(TINY))
            told = await states(watch, "r1", ("serving", ""))
            assert [state for state, _ in told if state in LIFE] == list(LIFE)
            await loading
            token = watch.resume_token

            controller.runner().kill()
            assert (await states(watch, "r1", ("dead", "SIGNAL")))[-1] == ("dead", "SIGNAL")
            await client.load_model(TINY, keep_alive=0)
            told = await states(watch, "r2", ("dead", "KEEP_ALIVE"))
            assert [state for state, _ in told][:1] == ["starting"]
            await client.load_model(TINY)
            assert await client.unload_model(TINY) == 1
            await states(watch, "r3", ("dead", "UNLOADED"))
            await client.delete_model(TINY)
            async with asyncio.timeout(PATIENCE):
                async for event in watch:
                    if event == ModelDeleted(TINY):
                        break
        # Who was away is told the same.
        assert token
        async with client.watch_models(resume_token=token) as resumed:
            async with asyncio.timeout(PATIENCE):
                events = [event async for event in before_checkpoint(resumed)]
            assert events[-1] == ModelDeleted(TINY)
            assert TINY not in [model.name for model in watch.models]

    # The last line of all: the others are there too.
    (gone,) = await controller.logged(to="gone")
    assert (gone["model"], gone["from"], gone["why"]) == (TINY, "stored", "DELETED")
    assert transitions(controller, "r1") == [
        ("none", "starting", ""),
        ("starting", "loading", ""),
        ("loading", "serving", ""),
        ("serving", "dead", "SIGNAL"),
    ]
    assert transitions(controller, "r2")[-1][1:] == ("dead", "KEEP_ALIVE")
    assert transitions(controller, "r3")[-1][1:] == ("dead", "UNLOADED")


async def before_checkpoint(watch: AsyncModelWatch) -> AsyncIterator[ModelsEvent]:
    async for event in watch:
        if isinstance(event, WatchCheckpoint):
            return
        yield event


async def test_a_draining_controller_sends_watchers_away(start: StartController) -> None:
    controller = start()
    async with AsyncClient(controller.target) as client, client.watch_models() as watch:
        await anext(aiter(watch))
        controller.send(signal.SIGTERM)
        with pytest.raises(Draining):
            async with asyncio.timeout(PATIENCE):
                await watch.collect()
    assert await asyncio.to_thread(controller.wait) == 0


async def test_ps_shows_what_changes_as_it_does(start: StartController) -> None:
    controller = start()
    process = start_headrace(controller, "ps", "--watch", "--json")
    try:
        assert process.stdout is not None
        async with AsyncClient(controller.target, timeout=PATIENCE) as client:
            await client.load_model(TINY)
        told: list[str] = []
        while "serving" not in told:
            reading = asyncio.to_thread(process.stdout.readline)
            told.append(json.loads(await asyncio.wait_for(reading, PATIENCE))["state"])
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    finally:
        process.kill()
        process.communicate()
