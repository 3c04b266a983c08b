"""The controller's services over a real connection, with models that need no runner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from headrace.errors import (
    Draining,
    HeadraceError,
    InvalidRequest,
    ModelCorrupt,
    ModelNotFound,
    ModelTooLarge,
    UnsupportedCapability,
    UnsupportedParameter,
    from_rpc_error,
)
from headrace.v1 import completion_pb2 as completion
from headrace.v1 import embedding_pb2 as embedding
from headrace.v1 import image_pb2 as image
from headrace.v1 import model_pb2 as model
from headrace.v1 import score_pb2 as score
from headrace.v1 import tokenize_pb2 as tokenize
from headrace.v1.completion_pb2_grpc import CompletionServiceStub
from headrace.v1.embedding_pb2_grpc import EmbeddingServiceStub
from headrace.v1.image_pb2_grpc import ImageServiceStub
from headrace.v1.model_pb2_grpc import ModelServiceStub
from headrace.v1.score_pb2_grpc import ScoreServiceStub
from headrace.v1.tokenize_pb2_grpc import TokenizeServiceStub
from headrace_server.app import SERVICES, App
from headrace_server.config import ServerConfig
from headrace_server.events import recorder
from headrace_server.relay import Relay, Terms
from headrace_server.scheduling.prefixes import fingerprints
from headrace_server.scheduling.timing import LONG_PROMPT
from headrace_server.services.watch import Watch
from tests.unit.control.fakes import put_manifest


@pytest_asyncio.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """To a controller whose store has a text model without files, and an image model."""
    put_manifest(tmp_path, "words", "text")
    put_manifest(tmp_path, "pictures", "image")
    app = App(ServerConfig(listen=f"unix:{tmp_path}/c.sock", home=tmp_path, memory=1 << 30))
    address = await app.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel
    finally:
        await app.close()


async def error_of(running: Any) -> HeadraceError:
    """The typed error that a call, unary or streaming, ends with."""
    try:
        if hasattr(running, "read"):
            async for _ in running:
                pass
        else:
            await running
    except grpc.RpcError as error:
        return from_rpc_error(error)
    raise AssertionError("the call succeeded")


def call(channel: grpc.aio.Channel, method: str, name: str) -> Any:
    """A call of a method that takes a model, on the model called `name`."""
    prompt = completion.CompletionInput(prompt="x")
    chat = completion.ChatInput(
        messages=[completion.ChatMessage(role=completion.CHAT_ROLE_USER, content="x")]
    )
    text, models = TokenizeServiceStub(channel), ModelServiceStub(channel)
    methods: dict[str, tuple[Any, Message]] = {
        "complete": (
            CompletionServiceStub(channel).StreamCompletion,
            completion.StreamCompletionRequest(model=name, prompt="x"),
        ),
        "tokenize": (text.Tokenize, tokenize.TokenizeRequest(model=name, text="x")),
        "detokenize": (text.Detokenize, tokenize.DetokenizeRequest(model=name, token_ids=[1])),
        "render": (text.RenderChat, tokenize.RenderChatRequest(model=name, chat=chat)),
        "count": (text.CountTokens, tokenize.CountTokensRequest(model=name, input=prompt)),
        "embed": (
            EmbeddingServiceStub(channel).Embed,
            embedding.EmbedRequest(model=name, inputs=[embedding.EmbeddingInput(text="x")]),
        ),
        "score": (
            ScoreServiceStub(channel).Score,
            score.ScoreRequest(
                model=name, input=prompt, continuations=[score.Continuation(text="y")]
            ),
        ),
        "draw": (
            ImageServiceStub(channel).StreamImage,
            image.StreamImageRequest(model=name, prompt="x"),
        ),
        "get": (models.GetModel, model.GetModelRequest(model=name)),
        "copy": (models.CopyModel, model.CopyModelRequest(source=name, destination="other")),
        "delete": (models.DeleteModel, model.DeleteModelRequest(model=name)),
        "load": (models.LoadModel, model.LoadModelRequest(model=name)),
        "unload": (models.UnloadModel, model.UnloadModelRequest(model=name)),
        "pull": (models.StreamPullModel, model.StreamPullModelRequest(model=name)),
    }
    stub, request = methods[method]
    return stub(request)


TEXT_METHODS = ("complete", "score", "tokenize", "detokenize", "render", "count")
MODEL_METHODS = ("get", "copy", "delete", "load", "unload", "pull")


async def test_an_unknown_model_is_not_found_by_any_method_and_near_names_are_told(
    channel: grpc.aio.Channel,
) -> None:
    for method in (*TEXT_METHODS, "embed", "draw", *MODEL_METHODS):
        error = await error_of(call(channel, method, "word"))
        assert isinstance(error, ModelNotFound), method
        assert error.metadata["nearest"].startswith("words:latest"), method


async def test_a_model_of_another_kind_cannot_do_it(channel: grpc.aio.Channel) -> None:
    refused = [(method, "pictures") for method in (*TEXT_METHODS, "embed")]
    for method, name in [*refused, ("embed", "words"), ("draw", "words")]:
        error = await error_of(call(channel, method, name))
        assert isinstance(error, UnsupportedCapability), method
        assert error.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_no_runner_is_listed_where_none_is(channel: grpc.aio.Channel) -> None:
    listed = await ModelServiceStub(channel).ListRunners(model.ListRunnersRequest())
    assert (len(listed.runners), len(listed.queues)) == (0, 0)
    assert listed.memory_budget_bytes == 1 << 30


async def test_models_are_watched_from_a_snapshot_and_on_from_a_checkpoint(
    channel: grpc.aio.Channel,
) -> None:
    models = ModelServiceStub(channel)
    watch: Any = models.WatchModels(model.WatchModelsRequest())  # the stub's types know no `read`
    snapshot, checkpoint = await watch.read(), await watch.read()
    assert [m.name for m in snapshot.snapshot.models] == ["pictures:latest", "words:latest"]
    await models.CopyModel(model.CopyModelRequest(source="words", destination="w:1"))
    await models.DeleteModel(model.DeleteModelRequest(model="words"))
    assert (await watch.read()).changed.name == "w:1"
    watch.cancel()

    token = checkpoint.checkpoint.resume_token
    resumed: Any = models.WatchModels(model.WatchModelsRequest(resume_token=token))
    assert (await resumed.read()).changed.name == "w:1"
    assert (await resumed.read()).deleted == "words:latest"
    assert (await resumed.read()).WhichOneof("event") == "checkpoint"
    resumed.cancel()


@pytest.mark.parametrize("token", ["", "x", "x.1", "0", "é.²"])
async def test_a_checkpoint_of_another_controller_begins_with_a_snapshot(
    channel: grpc.aio.Channel, token: str
) -> None:
    request = model.WatchModelsRequest(resume_token=token)
    watch: Any = ModelServiceStub(channel).WatchModels(request)
    assert len((await watch.read()).snapshot.models) == 2
    watch.cancel()


async def test_one_who_reads_too_slowly_gets_another_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "KEPT", 2)
    put_manifest(tmp_path, "words", "text")
    app = App(ServerConfig(listen=f"unix:{tmp_path}/c.sock", home=tmp_path, memory=1 << 30))
    watch = Watch(app._recorder, app._planner, app._scheduler.now)
    try:
        async with grpc.aio.insecure_channel(await app.start()) as channel:
            told = watch.responses(model.WatchModelsRequest())
            assert len((await anext(told)).snapshot.models) == 1
            await anext(told)
            for number in range(3):
                copy = model.CopyModelRequest(source="words", destination=f"w:{number}")
                await ModelServiceStub(channel).CopyModel(copy)
            assert len((await anext(told)).snapshot.models) == 4
            await told.aclose()
    finally:
        await app.close()


async def test_a_watch_ends_when_the_controller_drains(tmp_path: Path) -> None:
    put_manifest(tmp_path, "words", "text")
    app = App(ServerConfig(listen=f"unix:{tmp_path}/c.sock", home=tmp_path, memory=1 << 30))
    try:
        async with grpc.aio.insecure_channel(await app.start()) as channel:
            models = ModelServiceStub(channel)
            watch: Any = models.WatchModels(model.WatchModelsRequest())
            await anext(aiter(watch))
            await app.drain(asyncio.Event())
            error = await error_of(watch)
            assert isinstance(error, Draining)
            assert error.retry_after
            assert isinstance(
                await error_of(models.WatchModels(model.WatchModelsRequest())), Draining
            )
    finally:
        await app.close()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (
            completion.StreamCompletionRequest(
                model="words",
                prompt="x",
                sampling=completion.SamplingOptions(temperature=-1),
            ),
            "sampling.temperature",
        ),
        (completion.StreamCompletionRequest(model="words"), "input"),
        (completion.StreamCompletionRequest(prompt="x"), "model"),
    ],
)
async def test_a_broken_rule_names_the_field(
    channel: grpc.aio.Channel, request_: completion.StreamCompletionRequest, field: str
) -> None:
    error = await error_of(CompletionServiceStub(channel).StreamCompletion(request_))
    assert isinstance(error, InvalidRequest)
    assert [violation.field for violation in error.violations] == [field]


async def test_an_adapter_that_the_model_has_not_is_refused_before_any_load(
    channel: grpc.aio.Channel,
) -> None:
    request = completion.StreamCompletionRequest(model="words", prompt="x", adapter="ink")
    error = await error_of(CompletionServiceStub(channel).StreamCompletion(request))
    assert isinstance(error, UnsupportedParameter)  # The load would fail with ModelCorrupt.
    assert [violation.field for violation in error.violations] == ["adapter"]


async def test_what_a_model_does_not_draw_is_refused_before_any_load(
    channel: grpc.aio.Channel,
) -> None:
    stub = ImageServiceStub(channel)
    request = image.StreamImageRequest(model="pictures", prompt="x", guidance=4)
    error = await error_of(stub.StreamImage(request))
    assert isinstance(error, UnsupportedParameter)
    assert error.metadata == {"field": "guidance"}
    request = image.StreamImageRequest(model="pictures", prompt="x", width=65, steps=99)
    error = await error_of(stub.StreamImage(request))
    assert isinstance(error, InvalidRequest)
    assert [violation.field for violation in error.violations] == ["width", "steps"]


async def test_what_is_no_message_is_invalid(channel: grpc.aio.Channel) -> None:
    method: Any = channel.unary_unary("/headrace.v1.TokenizeService/Tokenize")
    assert isinstance(await error_of(method(b"\xff\xff\xff")), InvalidRequest)
    assert isinstance(await error_of(method(b"\x0a\x02\xed\xa0")), InvalidRequest)


async def test_a_damaged_model_is_told_with_its_file(channel: grpc.aio.Channel) -> None:
    for method, name in (
        *((method, "words") for method in ("complete", "tokenize", "load")),
        ("draw", "pictures"),
    ):
        error = await error_of(call(channel, method, name))
        assert isinstance(error, ModelCorrupt), method
        assert error.metadata["file"] == "model.safetensors"


async def test_models_are_listed_copied_and_deleted(channel: grpc.aio.Channel) -> None:
    models = ModelServiceStub(channel)

    async def names() -> list[str]:
        listed = await models.ListModels(model.ListModelsRequest())
        return [item.name for item in listed.models]

    assert await names() == ["pictures:latest", "words:latest"]
    assert not (await models.ListModels(model.ListModelsRequest(loaded=True))).models
    copied = await models.CopyModel(model.CopyModelRequest(source="words", destination="w:1"))
    assert copied.model.name == "w:1"
    assert copied.model.memory_estimate_bytes > 256 << 20
    await models.DeleteModel(model.DeleteModelRequest(model="words"))
    assert await names() == ["pictures:latest", "w:1"]
    unloaded = await models.UnloadModel(model.UnloadModelRequest(model="w:1"))
    assert unloaded.stopped == 0


async def test_health_knows_the_services_and_the_store_s_models(channel: grpc.aio.Channel) -> None:
    health = HealthStub(channel)
    listed = await health.List(HealthListRequest())
    assert set(listed.statuses) == {"", *SERVICES, "model/words:latest", "model/pictures:latest"}
    serving = await health.Check(HealthCheckRequest(service=""))
    assert serving.status == HealthCheckResponse.SERVING
    words = await health.Check(HealthCheckRequest(service="model/words:latest"))
    assert words.status == HealthCheckResponse.NOT_SERVING
    await ModelServiceStub(channel).DeleteModel(model.DeleteModelRequest(model="words"))
    assert "model/words:latest" not in (await health.List(HealthListRequest())).statuses


async def test_reflection_lists_every_service(channel: grpc.aio.Channel) -> None:
    async def ask() -> AsyncIterator[ServerReflectionRequest]:
        yield ServerReflectionRequest(list_services="")

    untyped: Any = channel  # the stub's types know blocking channels alone
    stub: Any = ServerReflectionStub(untyped)
    responses = stub.ServerReflectionInfo(ask())
    response = await responses.read()
    names = {service.name for service in response.list_services_response.service}
    assert names >= {*SERVICES, "grpc.health.v1.Health"}


async def test_a7_a_model_over_the_budget_is_too_large(tmp_path: Path) -> None:
    put_manifest(tmp_path, "words", "text")
    app = App(ServerConfig(listen=f"unix:{tmp_path}/c.sock", home=tmp_path, memory=1000))
    try:
        async with grpc.aio.insecure_channel(await app.start()) as channel:
            error = await error_of(call(channel, "load", "words"))
    finally:
        await app.close()
    assert isinstance(error, ModelTooLarge)
    assert error.metadata["has"] == "1000"


async def test_the_scheduler_knows_long_prompts_by_their_beginnings(
    channel: grpc.aio.Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Terms] = []

    async def stream(relay: Relay, kind: Any, request: bytes, terms: Terms, write: Any) -> None:
        asked.append(terms)

    monkeypatch.setattr(Relay, "stream", stream)
    pictures = image.StreamImageRequest(model="pictures", prompt=LONG_PROMPT * "x")
    async for _ in ImageServiceStub(channel).StreamImage(pictures):
        pass
    assert [terms.prompt_bytes for terms in asked] == [0]
    asked.clear()
    stub = CompletionServiceStub(channel)
    short, long = (
        completion.StreamCompletionRequest(model="words", prompt=length * "x")
        for length in (LONG_PROMPT // 2, LONG_PROMPT)
    )
    for request in (short, long):
        async for _ in stub.StreamCompletion(request):
            pass
    assert [terms.prefixes for terms in asked] == [(), fingerprints(long)]
    # An adapter is known by what it is, however it is called.
    put_manifest(tmp_path, "pirate", "adapter", base="words")
    asked.clear()
    for name in ("pirate", "pirate:latest"):
        async for _ in stub.StreamCompletion(
            completion.StreamCompletionRequest(model="words", prompt=long.prompt, adapter=name)
        ):
            pass
    one, other = asked
    assert one.adapter
    assert one.prefixes == other.prefixes == fingerprints(long, one.adapter)
