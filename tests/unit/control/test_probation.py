"""Suspects take turns; no turn lasts for ever, and who waits is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from headrace_server.relay.probation import Late, Probation, Turn


class Bench:
    """Suspects of one model, each a task that waits for its turn and keeps it."""

    def __init__(self, patience: float) -> None:
        self._probation = Probation(patience)
        self._tasks: list[asyncio.Task[None]] = []
        self.turns: asyncio.Queue[Turn] = asyncio.Queue()
        self.heartbeats = 0

    def join(self, key: str = "a") -> asyncio.Task[None]:
        self._tasks.append(task := asyncio.create_task(self._take(key)))
        return task

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, key: str) -> None:
        async def heartbeat() -> None:
            self.heartbeats += 1

        async with self._probation.turn(key, 0.01, heartbeat) as turn:
            self.turns.put_nowait(turn)
            await asyncio.Event().wait()

    async def next(self) -> Turn:
        return await asyncio.wait_for(self.turns.get(), 5)


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench(patience=0.05)
    yield bench
    await bench.close()


async def test_the_next_one_goes_when_the_turn_is_ended(bench: Bench) -> None:
    bench.join()
    first = await bench.next()
    bench.join()
    while bench.heartbeats < 3:  # noqa: ASYNC110 - it counts by itself
        await asyncio.sleep(0.001)
    assert bench.turns.empty()
    first.end()
    first.end()
    await bench.next()


async def test_models_do_not_wait_for_each_other(bench: Bench) -> None:
    bench.join("a")
    bench.join("b")
    await bench.next()
    await bench.next()


async def test_a_turn_that_has_begun_ends_by_itself(bench: Bench) -> None:
    bench.join()
    bench.join()
    (await bench.next()).begin()
    (await bench.next()).begin()


async def test_a_turn_ends_while_a_client_does_not_read_and_is_not_begun_late(bench: Bench) -> None:
    bench.join()
    bench.join()
    first = await bench.next()
    with first.bounded():
        second = await bench.next()
    with pytest.raises(Late):
        first.begin()
    with second.bounded():
        pass
    second.begin()


async def test_one_who_leaves_gives_the_turn_back(bench: Bench) -> None:
    running, waiting = bench.join(), bench.join()
    await bench.next()
    bench.join()
    waiting.cancel()
    running.cancel()
    await bench.next()
