"""Images a second through the whole path, beside the pipeline's own loop on the same weights."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Group

from headrace import AsyncClient
from headrace_server.store import Store
from tests.bench.children import BenchError, Child, running
from tests.bench.report import Outcome, cell, grid
from tests.bench.servers import controller
from tests.bench.setting import Setting
from tests.bench.stats import Spread, ratio, spread

MODEL = "emoji:64"
CLIENTS = (1, 4, 16)
EACH = 4
"""Images of one client, one after another."""
SHARE = 0.95
"""Of the own loop's images a second, at least."""

_SECONDS = 300.0
_PROMPTS = ("a red rose", "a cat", "a slice of pizza", "a rocket", "a snowman", "a blue whale")


@dataclass
class Figures:
    """What was measured at one number of clients, by round."""

    clients: int
    loop: list[float] = field(default_factory=list)
    """Images a second of the pipeline's own loop, which draws for all clients together."""
    path: list[float] = field(default_factory=list)
    """Images a second through controller and runner."""

    @property
    def share(self) -> Spread | None:
        """Of the loop's, round by round."""
        return ratio(self.path, self.loop)


@dataclass
class Found:
    """What was measured in all."""

    figures: list[Figures]
    previews: list[float] = field(default_factory=list)
    """Seconds from a request that is alone to its first preview."""


async def measure(setting: Setting, rounds: int, note: Callable[[str], None]) -> Found:
    """Both in turn, round by round. Raises BenchError."""
    store = Store(setting.home)
    directory = store.path(await store.pull(MODEL))
    bare = (sys.executable, Path(__file__).with_name("bare_images.py"), directory)
    found = Found([Figures(clients) for clients in CLIENTS])
    async with (
        running(bare, setting.tuned, b"ready") as loop,
        controller(setting, "--dtype", "float32") as (_, address),
        AsyncClient(address, timeout=_SECONDS) as client,
    ):
        await loop.ready()
        await client.load_model(MODEL, keep_alive=-1)
        await _through_path(client, 1)
        await _in_loop(loop, 1)
        for number in range(1, rounds + 1):
            for one in found.figures:
                ways = (_own(one, loop), _whole(one, client))
                # Whoever is second finds a warmer machine: they take turns.
                for way in ways if number % 2 else reversed(ways):
                    await way
            found.previews.append(await _first_preview(client))
            note(f"round {number} of {rounds}")
    return found


async def _own(figures: Figures, loop: Child) -> None:
    figures.loop.append(await _in_loop(loop, figures.clients))


async def _whole(figures: Figures, client: AsyncClient) -> None:
    figures.path.append(await _through_path(client, figures.clients))


async def _in_loop(loop: Child, clients: int) -> float:
    """Images a second."""
    seconds = 0.0
    for turn in range(EACH):
        request = {"prompts": _prompts(clients), "seed": turn * clients}
        answer = json.loads(await loop.ask(json.dumps(request).encode(), _SECONDS))
        seconds += answer["seconds"]
    return EACH * clients / seconds


async def _through_path(client: AsyncClient, clients: int) -> float:
    """Images a second."""

    async def draw(number: int, prompt: str) -> None:
        for turn in range(EACH):
            images = await client.image(prompt, model=MODEL, seed=turn * clients + number)
            if len(images) != 1:
                raise BenchError(f"a request for one image gave {len(images)}")

    begin = time.perf_counter()
    async with asyncio.timeout(_SECONDS), asyncio.TaskGroup() as group:
        for number, prompt in enumerate(_prompts(clients)):
            group.create_task(draw(number, prompt))
    return EACH * clients / (time.perf_counter() - begin)


async def _first_preview(client: AsyncClient) -> float:
    async with client.stream_image(_PROMPTS[0], model=MODEL, seed=1, preview_every=1) as stream:
        whole = await stream.collect()
    if whole.time_to_first_preview is None:
        raise BenchError("a request with previews had none")
    return whole.time_to_first_preview


def _prompts(count: int) -> Sequence[str]:
    return [_PROMPTS[number % len(_PROMPTS)] for number in range(count)]


def outcome(found: Found) -> Outcome:
    """A table, and a failure where the path costs more than it may."""
    rows = []
    failures: list[str] = []
    for one in found.figures:
        share = one.share
        rows.append(
            (
                str(one.clients),
                cell(spread(one.loop), 2),
                cell(spread(one.path), 2),
                cell(share, 3),
            )
        )
        if share is None or share.median < SHARE:
            shown = cell(share, 3)
            failures.append(
                f"images/s at {one.clients} clients: {shown} of the loop, aim ≥ {SHARE}"
            )
    table = grid(("clients", "own loop images/s", "whole path images/s", "share"), rows)
    preview = cell(spread(found.previews), 3)
    shown_preview = grid(("", "seconds"), [("first preview, alone", preview)])
    return Outcome(Group(table, shown_preview), asdict(found), tuple(failures))
