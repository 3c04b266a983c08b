"""Streams while a controller drains, over a real connection, by runners that are fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from headrace.v1.completion_pb2 import StreamCompletionRequest
from headrace.v1.completion_pb2_grpc import CompletionServiceStub
from headrace_server.app import App
from headrace_server.config import ServerConfig
from headrace_server.scheduling.planner import Planner
from tests.unit.control.fakes import (
    Context,
    FakeLauncher,
    FakeRunner,
    completed,
    delta,
    put_manifest,
    started,
)


async def half(
    runner: FakeRunner, request: StreamCompletionRequest, context: Context
) -> AsyncIterator[Any]:
    """A token from the first runner, which then hangs, and the next from another."""
    yield started()
    if runner.id == "r1":
        yield delta(1)
        await asyncio.Event().wait()
    yield delta(2)
    yield completed()


async def test_c1_a_stream_whose_runner_dies_while_the_controller_drains_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_manifest(tmp_path, "words", "text")
    launcher = FakeLauncher(tmp_path, half)
    monkeypatch.setattr(Planner, "launch", lambda _, *arguments: launcher.launch(*arguments))
    monkeypatch.setattr(Planner, "measure", lambda _, *arguments: launcher.measure(*arguments))
    app = App(ServerConfig(listen=f"unix:{tmp_path}/c.sock", home=tmp_path, memory=1 << 30))

    async def stop() -> None:
        await app.drain(asyncio.Event())
        await app.close()

    async with grpc.aio.insecure_channel(await app.start()) as channel, asyncio.timeout(30):
        request = StreamCompletionRequest(model="words", prompt="x")
        stream: Any = CompletionServiceStub(channel).StreamCompletion(request)
        while (await stream.read()).WhichOneof("event") != "delta":
            pass
        stopping = asyncio.create_task(stop())
        try:
            await launcher.runners[0].die()
            while (event := await stream.read()).WhichOneof("event") != "completed":
                pass
            assert event.completed.resumed == 1
        finally:
            await stopping
