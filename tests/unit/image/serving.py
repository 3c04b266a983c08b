"""A runner of the painter's in this process: real services on a real server, and a client."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from headrace.errors import from_rpc_error
from headrace.v1.image_pb2 import (
    ImageCompleted,
    ImagePreview,
    ImageProgress,
    ImageStarted,
    StreamImageRequest,
    StreamImageResponse,
)
from headrace.v1.image_pb2_grpc import ImageServiceStub
from headrace_runner.image_app import prepare
from headrace_runner.image_state import ImageRunner
from tests.painter import Painter
from tests.runner_services import services_of

if TYPE_CHECKING:
    from headrace.v1.image_pb2_grpc import ImageServiceAsyncStub

MODEL = "painter:1"
TIMEOUT = 30.0


def ask(prompt: str = "a rose", **fields: Any) -> StreamImageRequest:
    return StreamImageRequest(**({"model": MODEL, "prompt": prompt} | fields))


@dataclass
class Answer:
    """A whole stream, put together and held to the contract."""

    started: ImageStarted = field(default_factory=ImageStarted)
    progress: list[ImageProgress] = field(default_factory=list)
    previews: list[ImagePreview] = field(default_factory=list)
    files: dict[int, bytes] = field(default_factory=lambda: defaultdict(bytes))
    completed: ImageCompleted = field(default_factory=ImageCompleted)
    kinds: list[str] = field(default_factory=list)

    def take(self, event: StreamImageResponse) -> str:
        kind = event.WhichOneof("event") or ""
        assert "completed" not in self.kinds
        assert ("started" in self.kinds) != (kind == "started") or kind == "progress"
        self.kinds.append(kind)
        match kind:
            case "started":
                self.started = event.started
            case "progress":
                self.progress.append(event.progress)
            case "preview":
                assert len(event.preview.data) <= 64 << 10
                self.previews.append(event.preview)
            case "chunk":
                chunk = event.chunk
                assert 0 < len(chunk.data) <= 64 << 10
                assert chunk.offset == len(self.files[chunk.index])
                self.files[chunk.index] += chunk.data
            case "completed":
                self.completed = event.completed
                assert [each.index for each in event.completed.images] == sorted(self.files)
                for each in event.completed.images:
                    data = self.files[each.index]
                    assert each.sha256 == hashlib.sha256(data).hexdigest()
                    assert each.size_bytes == len(data)
                    assert each.seed == (self.started.seed + each.index) % 2**63
                    size = (self.started.width, self.started.height)
                    assert (each.width, each.height) == size
        return kind


class Stream:
    """One call. `answer` grows as it is read."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self._events: AsyncIterator[StreamImageResponse] = aiter(call)
        self.answer = Answer()

    async def next(self) -> str | None:
        """Reads one event; gives its kind, or None after the last. Raises the typed error."""
        try:
            event = await anext(self._events, None)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        return None if event is None else self.answer.take(event)

    async def until(self, kind: str) -> None:
        while (found := await self.next()) != kind:
            assert found is not None, f"no {kind} came"

    async def rest(self) -> Answer:
        while await self.next() is not None:
            pass
        assert self.answer.kinds[-1] == "completed"
        return self.answer


class Api:
    """The services of one runner."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._images: ImageServiceAsyncStub = ImageServiceStub(channel)

    def stream(self, request: StreamImageRequest, **options: Any) -> Stream:
        return Stream(self._images.StreamImage(request, **({"timeout": TIMEOUT} | options)))

    async def draw(self, request: StreamImageRequest) -> Answer:
        return await self.stream(request).rest()


@dataclass
class Served:
    """A runner, its client, and what it draws with."""

    runner: ImageRunner
    api: Api

    @property
    def pipeline(self) -> Painter:
        pipeline = self.runner.loaded.result().pipeline
        assert isinstance(pipeline, Painter)
        return pipeline

    async def load(self) -> None:
        """As the app does."""
        self.runner.loaded.set_result(await self.runner.engine.start())
        self.pipeline.batches.clear()

    async def idle(self) -> None:
        while self.runner.engine.active or self.runner.engine.running:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(
    directory: Path, socket: Path, *arguments: str, load: bool = True
) -> AsyncIterator[Served]:
    async with services_of(prepare, directory, socket, MODEL, *arguments) as (made, channel):
        assert isinstance(made.runner, ImageRunner)
        painting = Served(made.runner, Api(channel))
        if load:
            await painting.load()
        yield painting
