"""A relay to test, and runners by a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import HeadraceError
from headrace.v1.completion_pb2 import StreamCompletionRequest, StreamCompletionResponse
from headrace_server.relay import CompletionRecord, Relay, Terms
from headrace_server.scheduling.shell import Scheduler
from headrace_server.scheduling.state import Limits
from tests.unit.control.fakes import (
    Context,
    FakeLauncher,
    FakeModel,
    FakeRunner,
    Script,
    completed,
    delta,
    started,
)

REQUEST = StreamCompletionRequest(model="fake", prompt="hello").SerializeToString()


class Stage:
    """A scheduler, a relay, and what the client was sent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._news = asyncio.Event()
        self.model = FakeModel()
        self.sent: list[StreamCompletionResponse] = []
        self.unloading: list[asyncio.Task[int]] = []
        self.launcher: FakeLauncher
        self.scheduler: Scheduler
        self.relay: Relay

    def set(
        self, script: Script, *, hold: bool = False, max_crashes: int = 3, **relay: float
    ) -> None:
        self.launcher = FakeLauncher(self._folder, script, hold, has_arrived=self._has_tokens)
        limits = Limits(100, backoff=0.001, max_crashes=max_crashes)
        self.scheduler = Scheduler(limits, self.launcher)
        self.relay = Relay(self.scheduler, **{"max_time": 20.0, "diagnosis": 2.0, **relay})

    async def write(self, data: bytes) -> None:
        self.sent.append(StreamCompletionResponse.FromString(data))
        self._news.set()

    async def stream(self, time_remaining: float | None = None, choices: int = 1) -> None:
        terms = Terms(self.model, time_remaining=time_remaining)
        record = partial(CompletionRecord, alone=choices == 1)
        await self.relay.stream(record, REQUEST, terms, self.write)

    async def fails(self, kind: type[HeadraceError], **more: Any) -> HeadraceError:
        with pytest.raises(kind) as caught:
            await self.stream(**more)
        return caught.value

    @property
    def events(self) -> list[str]:
        """What came, without what the wait brought."""
        events = [message.WhichOneof("event") or "" for message in self.sent]
        return [event for event in events if event != "progress"]

    @property
    def runner(self) -> FakeRunner:
        return self.launcher.runners[-1]

    async def _has_tokens(self, count: int) -> None:
        await self.until(
            lambda: sum(len(message.delta.token_ids) for message in self.sent) >= count
        )

    def idle(self) -> bool:
        return not self.scheduler.in_use(FakeModel().key)

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until it is so after some message to the client."""
        async with asyncio.timeout(5):
            while not true():
                self._news.clear()
                await self._news.wait()


async def answer(
    runner: FakeRunner, request: StreamCompletionRequest, context: Context
) -> AsyncIterator[StreamCompletionResponse]:
    for message in (started(), delta(1), delta(2), completed()):
        yield message


def dying(*lives: int, choices: int = 1, length: int = 12) -> Script:
    """Runners of which each sends so many tokens of each choice before it dies; the last ones,
    for which there is no number, send all. They go on where they are told to."""

    async def script(
        runner: FakeRunner, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        sent = {choice.index: len(choice.token_ids) for choice in request.resume_choices}
        number = int(runner.id[1:]) - 1
        dies = number < len(lives)
        given = sum(sent.values())
        yield started()
        for token in range(length):
            for choice in range(choices):
                done = sent.get(choice, 0)
                if done <= token and not (dies and token - done >= lives[number]):
                    yield delta(token + 1, choice)
                    given += 1
        if dies:
            if runner.has_arrived is not None:
                await runner.has_arrived(given)
            await runner.die("OUT_OF_MEMORY", delay=0.02)
        yield completed()

    return script


async def endless(
    runner: FakeRunner, request: StreamCompletionRequest, context: Context
) -> AsyncIterator[StreamCompletionResponse]:
    yield started()
    await asyncio.Event().wait()
