"""A runner's process on an image model: from its start to its end, and after another start."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from headrace.errors import UnsupportedCapability, from_rpc_error
from headrace.host.handover import Failed, Loading
from headrace.rpc.options import channel_options
from headrace.v1.common_pb2 import ModelKind
from headrace.v1.completion_pb2 import StreamCompletionRequest
from headrace.v1.completion_pb2_grpc import CompletionServiceStub
from headrace.v1.image_pb2 import StreamImageRequest
from headrace.v1.image_pb2_grpc import ImageServiceStub
from headrace.v1.runner_pb2 import GetRunnerRequest, Runner
from headrace.v1.runner_pb2_grpc import RunnerServiceStub
from tests.integration.runner.api import TIMEOUT, Api
from tests.integration.runner.child import Child, serving, started
from tests.painter import TRAITS, save_painter
from tests.unit.image.serving import MODEL, Answer, ask
from tests.unit.image.serving import Api as Images

PROGRAM = "tests.integration.runner.painting"
NAMED = ("--name", MODEL, "--digest", "sha256:ab")


@pytest.fixture
def painter_dir(tmp_path: Path) -> Path:
    return save_painter(tmp_path / "painter")


def channel_to(child: Child) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(child.address, options=channel_options(child.address))


def services(child: Child) -> set[str]:
    with grpc.insecure_channel(child.address, options=channel_options(child.address)) as channel:
        return set(ProtoReflectionDescriptorDatabase(channel).get_services())


async def look_around(child: Child) -> None:
    """Kind, services, health and memory, as they are to be."""
    async with channel_to(child) as channel:
        stub: Any = RunnerServiceStub(channel)
        runner: Runner = (await stub.GetRunner(GetRunnerRequest(), timeout=TIMEOUT)).runner
        assert runner.kind == ModelKind.MODEL_KIND_IMAGE
        assert runner.weights == "float32"
        assert runner.memory.weights_bytes == 16 * 3 * 4
        assert runner.memory.active_bytes >= runner.memory.weights_bytes
        assert runner.limits.max_concurrency == TRAITS.max_batch
        assert runner.limits.context_length == 0
        assert runner.load.requests_total >= 1
        health: Any = HealthStub(channel)
        for service in ("", "headrace.v1.ImageService", "headrace.v1.RunnerService"):
            answer = await health.Check(HealthCheckRequest(service=service), timeout=TIMEOUT)
            assert answer.status == HealthCheckResponse.SERVING
        unknown = HealthCheckRequest(service="headrace.v1.CompletionService")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(unknown, timeout=TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        completion: Any = CompletionServiceStub(channel)
        request = StreamCompletionRequest(model=MODEL, prompt="x")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await completion.StreamCompletion(request, timeout=TIMEOUT).read()
        assert isinstance(from_rpc_error(caught.value), UnsupportedCapability)


async def draw(child: Child) -> Answer:
    async with channel_to(child) as channel:
        return await Images(channel).draw(ask(seed=11, count=2))


async def test_it_draws_the_same_after_another_start_and_ends_what_runs(
    model_home: Path, painter_dir: Path
) -> None:
    with serving(model_home, painter_dir, *NAMED, program=PROGRAM) as child:
        first = await draw(child)
        await look_around(child)
        assert await asyncio.to_thread(services, child) == {
            "headrace.v1.ImageService",
            "headrace.v1.RunnerService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        assert [r.fraction for r in child.reports if isinstance(r, Loading)][-1] == 1
        async with channel_to(child) as channel:
            stream = Images(channel).stream(ask(steps=100, count=16, width=256, height=256))
            await stream.until("started")
            child.signal(signal.SIGTERM)
            answer = await stream.rest()
            assert len(answer.files) == 16
        assert await asyncio.to_thread(child.exit_code) == 0
    told = ("--kind", "image", "--context", "5")
    with serving(model_home, painter_dir, *NAMED, *told, program=PROGRAM) as child:
        again = await draw(child)
        assert again.files == first.files
        assert "--context: for text alone" in child.log


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_model_is_named_in_the_report(
    model_home: Path, painter_dir: Path, file: str
) -> None:
    (painter_dir / file).write_bytes(b"{")
    with started(model_home, painter_dir, "--kind", "image", program=PROGRAM) as child:
        failed = child.hear(Failed)
        assert (failed.cause, failed.file) == ("MODEL_CORRUPT", file)
        assert child.exit_code() == 1


def test_a_model_of_no_family_is_refused_as_one_for_images(
    model_home: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    with started(model_home, tmp_path, "--kind", "image", program=PROGRAM) as child:
        assert child.hear(Failed).cause == "UNSUPPORTED_MODEL"


async def test_a_model_for_text_draws_nothing(tiny: Api) -> None:
    stub: Any = ImageServiceStub(tiny.channel)
    call = stub.StreamImage(StreamImageRequest(model="the-model", prompt="x"), timeout=TIMEOUT)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    error = from_rpc_error(caught.value)
    assert isinstance(error, UnsupportedCapability)
    assert error.metadata == {"model": "the-model", "capability": "image"}
