"""What the settings of single models do to real runners."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from headrace import AsyncClient
from headrace.types import Delta, Started
from tests.e2e.conftest import TINY
from tests.e2e.harness import MODEL, PATIENCE, StartController

SETTINGS = f"""
[models."{MODEL}"]
max_concurrency = 1
replicas = 2
pinned = true

[models."{TINY}"]
keep_alive = 0
"""


async def test_replicas_concurrency_pins_and_keep_alive(home: Path, start: StartController) -> None:
    (home / "config.toml").write_text(SETTINGS)
    controller = start(home=home)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        runners: list[str] = []
        async with AsyncExitStack() as open_streams:
            for _ in range(2):
                stream = await open_streams.enter_async_context(
                    client.stream_completion(MODEL, "1, 2, 3,", max_tokens=4000, ignore_eos=True)
                )
                async for event in stream:
                    if isinstance(event, Started):
                        runners.append(event.runner)
                    if isinstance(event, Delta):
                        break
            # One place each: the second stream got a runner of its own while the first one runs.
            assert len(set(runners)) == 2
            assert len(controller.runners()) == 2

        await client.complete(TINY, "x", max_tokens=1)
        async with asyncio.timeout(PATIENCE), client.watch_models() as watch:
            async for _ in watch:
                loaded = {model.name: model.runners for model in watch.models}
                if not loaded[TINY]:
                    break
        # What a request says does not unload what is there to stay.
        await client.complete(MODEL, "x", max_tokens=1, keep_alive=0)
        assert any(runner.pinned for runner in (await client.get_model(MODEL)).runners)
        assert controller.runners()
