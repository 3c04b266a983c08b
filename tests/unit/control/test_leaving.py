"""Models that leave the store while they are loaded, over a real connection to a controller."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio

from headrace.errors import ModelInUse, ModelNotFound, UnsupportedParameter
from headrace.v1 import model_pb2 as model
from headrace.v1.completion_pb2 import StreamCompletionRequest
from headrace.v1.completion_pb2_grpc import CompletionServiceStub
from headrace.v1.model_pb2_grpc import ModelServiceStub
from headrace_server.app import App
from headrace_server.config import ServerConfig
from headrace_server.runners.diagnosis import Death
from headrace_server.scheduling.planner import Planner
from headrace_server.store import Store
from tests.unit.control.fakes import Context, FakeLauncher, FakeRunner, put_manifest, started
from tests.unit.control.test_services import error_of


async def endless(
    runner: FakeRunner, request: StreamCompletionRequest, context: Context
) -> AsyncIterator[Any]:
    yield started()
    await asyncio.Event().wait()


@pytest.fixture
def launcher(tmp_path: Path) -> FakeLauncher:
    return FakeLauncher(tmp_path, endless)


@pytest_asyncio.fixture
async def channel(
    launcher: FakeLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[grpc.aio.Channel]:
    """To a controller with two models, whose runners are fakes."""
    put_manifest(tmp_path, "words", "text")
    put_manifest(tmp_path, "others", "text")
    monkeypatch.setattr(Planner, "launch", lambda _, *arguments: launcher.launch(*arguments))
    monkeypatch.setattr(Planner, "measure", lambda _, *arguments: launcher.measure(*arguments))
    app = App(ServerConfig(listen=f"unix:{tmp_path}/c.sock", home=tmp_path, memory=1 << 30))
    try:
        async with grpc.aio.insecure_channel(await app.start()) as channel:
            yield channel
    finally:
        await app.close()


async def test_nobody_is_given_a_model_that_is_being_deleted(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ModelServiceStub(channel)
    await models.LoadModel(model.LoadModelRequest(model="words"))
    stopping, go_on, stop = asyncio.Event(), asyncio.Event(), FakeRunner.stop

    async def slow_stop(runner: FakeRunner, grace: float) -> Death:
        stopping.set()
        await go_on.wait()
        return await stop(runner, grace)

    monkeypatch.setattr(FakeRunner, "stop", slow_stop)
    deleting = models.DeleteModel(model.DeleteModelRequest(model="words"))
    await stopping.wait()
    loading = models.LoadModel(model.LoadModelRequest(model="words"), timeout=5)
    refused = await error_of(loading)
    go_on.set()
    await deleting
    assert isinstance(refused, ModelNotFound)
    assert "being deleted" in refused.message


async def test_a_busy_model_is_not_deleted_and_serves_on(channel: grpc.aio.Channel) -> None:
    models, completions = ModelServiceStub(channel), CompletionServiceStub(channel)
    request = StreamCompletionRequest(model="words", prompt="x")
    stream: Any = completions.StreamCompletion(request)  # the stub's types know no `read`
    while (await stream.read()).WhichOneof("event") != "started":
        pass
    deleting = models.DeleteModel(model.DeleteModelRequest(model="words"))
    assert isinstance(await error_of(deleting), ModelInUse)
    loaded = await models.LoadModel(model.LoadModelRequest(model="words"))
    assert loaded.runner.active_requests == 1
    stream.cancel()


async def test_a_busy_adapter_is_not_deleted(
    channel: grpc.aio.Channel, launcher: FakeLauncher, tmp_path: Path
) -> None:
    put_manifest(tmp_path, "pirate", "adapter", base="words")
    models, completions = ModelServiceStub(channel), CompletionServiceStub(channel)
    launcher.hold = True
    request = StreamCompletionRequest(model="words", prompt="x", adapter="pirate")
    stream: Any = completions.StreamCompletion(request)
    runner = await asyncio.wait_for(launcher.launched.get(), 5)
    deletion = model.DeleteModelRequest(model="pirate")
    error = await error_of(models.DeleteModel(deletion))
    assert isinstance(error, ModelInUse)
    assert error.metadata["model"] == "pirate:latest"
    runner.loaded.set()
    while (await stream.read()).WhichOneof("event") != "started":
        pass
    assert isinstance(await error_of(models.DeleteModel(deletion)), ModelInUse)
    stream.cancel()
    await runner.cancelled.wait()
    async with asyncio.timeout(5):
        while True:  # The controller is done with it a moment after its runner is.
            with suppress(grpc.aio.AioRpcError):
                await models.DeleteModel(deletion)
                break


async def test_nobody_is_given_an_adapter_that_is_being_deleted(
    channel: grpc.aio.Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_manifest(tmp_path, "pirate", "adapter", base="words")
    deleting, go_on, delete = threading.Event(), threading.Event(), Store.delete

    def slow(store: Store, name: str) -> int:
        deleting.set()
        assert go_on.wait(10)
        return delete(store, name)

    monkeypatch.setattr(Store, "delete", slow)
    call = ModelServiceStub(channel).DeleteModel(model.DeleteModelRequest(model="pirate"))
    assert await asyncio.to_thread(deleting.wait, 5)
    request = StreamCompletionRequest(model="words", prompt="x", adapter="pirate")
    error = await error_of(CompletionServiceStub(channel).StreamCompletion(request, timeout=5))
    go_on.set()
    await call
    assert isinstance(error, UnsupportedParameter)
    assert "pirate:latest is being deleted" in error.message


async def test_a_runner_whose_model_has_no_name_any_more_goes(
    channel: grpc.aio.Channel, launcher: FakeLauncher, tmp_path: Path
) -> None:
    models = ModelServiceStub(channel)
    pinned = model.LoadModelRequest(model="words")
    pinned.keep_alive.FromSeconds(-1)
    await models.LoadModel(pinned)
    await models.LoadModel(model.LoadModelRequest(model="others"))
    manifest = tmp_path / "models" / "words" / "latest.json"
    before = manifest.read_text()
    manifest.write_text(before.replace("sha256:", "sha256:f"))
    await models.CopyModel(model.CopyModelRequest(source="others", destination="o"))
    manifest.write_text(before)

    nameless, other = launcher.runners
    done, _ = await asyncio.wait({nameless.dead}, timeout=5)
    assert done
    assert not other.dead.done()
