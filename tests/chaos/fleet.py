"""Two controllers behind Envoy, under streams that are followed, cut off, and given up with their
connections, while runners are killed and controllers restarted: what stays of it?"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import grpc
import psutil
from rich.console import Console
from rich.table import Table

from headrace import AsyncClient, Delta
from headrace.errors import HeadraceError
from headrace.types import Completion, RunnerState
from tests.chaos.footprint import Footprint, end, of_controller, of_process, settled
from tests.e2e.harness import Controller
from tests.e2e.site import Site
from tests.tiny_home import TINY

PROGRAM = "tests.chaos.controller"
_PROMPTS = ("the quick", "a fox", "12 dogs", "they sleep", "lazy", "over", "the other", "jumps")
_TOKENS = 80
_CUT, _OWN = 0.4, 0.1
"""Shares of the streams that are cut off somewhere, and of those with a connection of their own."""
_PATIENCE = 60.0
"""Seconds for any one thing."""
_LOOK = 0.05
_STEADY = 0.3
"""Seconds between two looks that have to be alike."""
_MEAN_PEACE = 0.4
"""Seconds between what happens, on average, once a model is served again."""


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    kills: int
    """Of runners."""
    restarts: int
    """Of controllers, by SIGTERM, one after the other."""
    streams: int = 32
    """At once."""
    seed: int = 0


@dataclass
class Result:
    """What came of it."""

    plan: Plan
    completed: int = 0
    cut: int = 0
    connections: int = 0
    moves: int = 0
    failures: list[str] = field(default_factory=list)
    """Streams that ended with an error, or with another text."""
    footprints: dict[str, tuple[Footprint, Footprint]] = field(default_factory=dict)
    """Before and after, of each process."""
    left: list[str] = field(default_factory=list)
    """What there is too much of, or was left behind."""
    seconds: float = 0.0

    def show(self, console: Console) -> None:
        """Prints what came of it as a table."""
        plan = self.plan
        told = (
            f"{plan.streams} streams at once, {plan.kills} runners killed, {plan.restarts}"
            f" controllers restarted, {self.seconds:.0f} s; {self.completed} streams completed,"
            f" {self.cut} cut off, {self.connections} connections, {self.moves} moves"
        )
        table = Table("", "memory, MiB", "files", "threads", "tasks", "processes", caption=told)
        for name, (before, after) in self.footprints.items():
            table.add_row(
                name,
                f"{before.memory >> 20} → {after.memory >> 20}",
                f"{before.files} → {after.files}",
                f"{before.threads} → {after.threads}",
                f"{len(before.tasks)} → {len(after.tasks)}" if before.tasks else "",
                f"{before.processes} → {after.processes}",
            )
        console.print(table)
        for line in [*self.failures, *self.left][:10]:
            console.print(line, style="red", highlight=False, markup=False)


class Fleet:
    """One run."""

    def __init__(self, plan: Plan, site: Site) -> None:
        self._site = site
        self._random = Random(plan.seed)
        self._expected: dict[str, str] = {}
        self._killed: set[int] = set()
        self.result = Result(plan)

    async def run(self) -> Result:
        """All of it. Raises TimeoutError where something never comes."""
        began = time.monotonic()
        plan = self.result.plan
        async with self._site.client() as client:
            for prompt in _PROMPTS:
                self._expected[prompt] = (await _ask(client, prompt)).text
        async with self._load():  # Once of each, so that all is there that stays.
            for port in self._site.running:
                await self._kill(port)
        before = await self._steady()
        # One controller stays for all of it: what grows slowly grows there.
        *_, restarted = self._site.running
        async with self._load():
            for _ in range(plan.restarts):
                await self._some(plan.kills // max(1, plan.restarts))
                await self._restart(restarted)
            await self._some(plan.kills - plan.kills // max(1, plan.restarts) * plan.restarts)
        after = await self._after(before)
        self.result.footprints = {name: (before[name], after[name]) for name in before}
        for name, found in after.items():
            self.result.left += [f"{name}: {line}" for line in found.excess(before[name])]
        await self._end()
        self.result.seconds = time.monotonic() - began
        return self.result

    @asynccontextmanager
    async def _load(self) -> AsyncIterator[None]:
        """Streams without a pause. All have ended, and their connections are closed, after it."""
        stop = asyncio.Event()
        async with self._site.client() as client, asyncio.TaskGroup() as group:
            for _ in range(self.result.plan.streams):
                random = Random(self._random.random())
                group.create_task(self._repeat(client, random, stop))
            try:
                yield
            finally:
                stop.set()
        gc.collect()  # gRPC closes the connections of a channel when it is collected.

    async def _repeat(self, client: AsyncClient, random: Random, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                if random.random() >= _OWN:
                    await self._stream(client, random)
                    continue
                self.result.connections += 1
                async with self._site.client() as own:
                    await self._stream(own, random)
            except HeadraceError as error:
                self.result.failures.append(f"{type(error).__name__}: {error}")

    async def _stream(self, client: AsyncClient, random: Random) -> None:
        prompt = random.choice(_PROMPTS)
        after = random.randrange(_TOKENS // 2) if random.random() < _CUT else None
        async with client.stream_completion(
            TINY, prompt, max_tokens=_TOKENS, temperature=0, ignore_eos=True
        ) as stream:
            deltas = 0
            async for event in stream:
                deltas += isinstance(event, Delta)
                if after is not None and deltas >= after:
                    self.result.cut += 1
                    return
            whole = await stream.collect()
        self.result.completed += 1
        self.result.moves += whole.completed.resumed
        if whole.text != self._expected[prompt]:
            self.result.failures.append(f"{whole.text!r} instead of {self._expected[prompt]!r}")

    async def _some(self, kills: int) -> None:
        for _ in range(kills):
            await self._kill(self._random.choice([*self._site.running]))
            await asyncio.sleep(self._random.expovariate(1 / _MEAN_PEACE))

    async def _kill(self, port: int) -> None:
        """Kill the runner of a controller, and return when another one serves."""
        await self._serving(port)
        for runner in self._site.running[port].runners():
            self._killed.add(runner.pid)
            with suppress(psutil.Error):
                runner.kill()
        await self._serving(port)

    async def _serving(self, port: int) -> None:
        """Until a controller has a runner that has made a token, and was not killed."""
        async with asyncio.timeout(_PATIENCE), self._beside(port) as client:
            while True:
                listed = (await client.list_runners()).runners
                alive = (r for r in listed if r.pid not in self._killed)
                if any(runner.state is RunnerState.SERVING for runner in alive):
                    return
                await asyncio.sleep(_LOOK)

    def _beside(self, port: int) -> AsyncClient:
        """A client of one controller itself, as Envoy is."""
        at = self._site.certificates
        files = [(at / name).read_bytes() for name in ("ca.crt", "client.key", "client.crt")]
        credentials = grpc.ssl_channel_credentials(*files)
        return AsyncClient(f"https://localhost:{port}", timeout=60, credentials=credentials)

    async def _restart(self, port: int) -> None:
        """End a controller as an orchestrator does, and start another one in its place."""
        await asyncio.to_thread(self._site.front.wait_for, 2)
        old = self._site.running.pop(port)
        self.result.left += await end(old)
        old.close()
        await asyncio.to_thread(self._site.front.wait_for, 1)
        await asyncio.to_thread(self._site.start, port)
        await asyncio.to_thread(self._site.front.wait_for, 2)
        await self._serving(port)

    def _looks(self) -> dict[str, Callable[[], Awaitable[Footprint]]]:
        async def envoy() -> Footprint:
            return of_process(self._site.front.pid)

        def look(controller: Controller) -> Callable[[], Awaitable[Footprint]]:
            return lambda: of_controller(controller)

        found = {f"controller {i}": self._site.running[p] for i, p in enumerate(self._ports(), 1)}
        return {**{name: look(one) for name, one in found.items()}, "Envoy": envoy}

    def _ports(self) -> list[int]:
        return sorted(self._site.running)

    async def _steady(self) -> dict[str, Footprint]:
        """What is held, once it changes no more."""
        looks = self._looks()
        found = {name: await look() for name, look in looks.items()}
        async with asyncio.timeout(_PATIENCE):
            while True:
                await asyncio.sleep(_STEADY)
                now = {name: await look() for name, look in looks.items()}
                if all(_counts(now[name]) == _counts(found[name]) for name in looks):
                    return now
                found = now

    async def _after(self, before: dict[str, Footprint]) -> dict[str, Footprint]:
        return {name: await settled(look, before[name]) for name, look in self._looks().items()}

    async def _end(self) -> None:
        for port in self._ports():
            self.result.left += await end(self._site.running[port])
        await asyncio.to_thread(self._site.front.close)


def _counts(found: Footprint) -> tuple[object, ...]:
    return found.files, found.threads, found.tasks, found.processes, found.sockets


async def _ask(client: AsyncClient, prompt: str) -> Completion:
    return await client.complete(TINY, prompt, max_tokens=_TOKENS, temperature=0, ignore_eos=True)


async def run(plan: Plan, home: Path, directory: Path) -> Result:
    """Makes the site, and leaves nothing of it."""
    site = await asyncio.to_thread(Site, home, directory, {}, PROGRAM)
    try:
        await asyncio.to_thread(site.open, 2)
        return await Fleet(plan, site).run()
    finally:
        await asyncio.to_thread(site.close)
