"""Serves ImageService: one request becomes one stream of the engine.

Whoever reads slowly holds up nobody: a task of its own takes the engine's events and writes the
files, in threads, and what the reader has not taken is the files and the last word on each image.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

from headrace.errors import ModelTooLarge
from headrace.rpc.access import charge, tokens_of_image
from headrace.v1.image_pb2 import (
    ImageResult,
    ImageStarted,
    StreamImageRequest,
    StreamImageResponse,
)
from headrace.v1.image_pb2_grpc import ImageServiceServicer
from headrace_runner.engine.image.memory import needed, remedy, smaller
from headrace_runner.engine.image.request import (
    Drawn,
    Finished,
    ImageRequest,
    Preview,
    Progress,
    Started,
)
from headrace_runner.engine.image.stream import ImageStream
from headrace_runner.engine.stream import Failed
from headrace_runner.image_state import ImageRunner
from headrace_runner.images import encode
from headrace_runner.images.parameters import parameters
from headrace_runner.models.pipeline import Phase
from headrace_runner.services.calls import Call
from headrace_runner.services.image_messages import (
    Completed,
    ImageFile,
    PreviewFile,
    chunks,
    completed,
    image_file,
    loading,
    preview,
    progress,
)
from headrace_runner.services.image_options import file_format, image_request, preview_format
from headrace_runner.services.image_spans import ImageSpan
from headrace_runner.services.workers import reading_images, sizing_images, writing_images

Context: TypeAlias = "grpc.aio.ServicerContext[StreamImageRequest, StreamImageResponse]"

_HEARTBEAT = 2.0
"""Seconds without anything to send after which a sign of life is sent."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """The first drawing has begun."""

    request: ImageRequest


_Event: TypeAlias = Progress | _Begun | PreviewFile | ImageFile | Completed


class ImageServicer(ImageServiceServicer):
    """Images by one runner's engine."""

    def __init__(self, runner: ImageRunner) -> None:
        self._runner = runner

    async def StreamImage(
        self, request: StreamImageRequest, context: Context
    ) -> AsyncIterator[StreamImageResponse]:
        """Draws images. See the contract."""
        arrived = time.perf_counter_ns()
        runner = self._runner
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        runner.check_target(request.model, metadata)
        request_id = request.request_id or secrets.token_hex(8)
        serial = runner.begin(request_id)
        span = ImageSpan(request, request_id, runner.config, arrived)
        with Call(runner, serial, span):
            outbox: ImageStream[_Event] = ImageStream()
            work = asyncio.create_task(self._work(request, request_id, outbox, span))
            try:
                async with aclosing(self._messages(outbox, request.model)) as messages:
                    async for message in messages:
                        yield message
            finally:
                work.cancel()
                await asyncio.wait({work})

    async def _messages(
        self, outbox: ImageStream[_Event], model: str
    ) -> AsyncGenerator[StreamImageResponse, None]:
        """What has come about as messages, with a sign of life where there is nothing to tell."""
        config = self._runner.config
        last = Progress(None)
        while True:
            if not await outbox.wait(_HEARTBEAT):
                if self._runner.loaded.done():
                    yield progress(last)
                else:
                    yield loading(self._runner.load_fraction)
                continue
            match await anext(outbox):
                case Progress() as last:
                    yield progress(last)
                case _Begun(request):
                    last = Progress(Phase.ENCODING)  # It waits no longer.
                    first = request.drawings[0]
                    yield StreamImageResponse(
                        started=ImageStarted(
                            id=request.id,
                            model=model,
                            digest=config.digest,
                            runner=config.id,
                            seed=first.seed,
                            width=first.width,
                            height=first.height,
                            steps=first.steps,
                        )
                    )
                case PreviewFile() as shown:
                    yield preview(shown)
                case ImageFile() as file:
                    for chunk in chunks(file):
                        yield chunk
                case Completed(message):
                    yield StreamImageResponse(completed=message)
                    return

    async def _work(
        self,
        request: StreamImageRequest,
        request_id: str,
        outbox: ImageStream[_Event],
        span: ImageSpan,
    ) -> None:
        """Has the images drawn; all that comes of it, errors included, goes into the outbox."""
        runner = self._runner
        try:
            asked = request, request_id, runner.traits, runner.adapters
            if request.input_images:
                wanted = await reading_images(image_request, *asked)
            else:  # Quick: it does not wait for those whose files are being read.
                wanted = image_request(*asked)
            await asyncio.shield(runner.loaded)
            await sizing_images(self._check_memory, wanted)
            span.accepted(wanted)
            stream = runner.engine.submit(wanted)
            try:
                await self._follow(stream, wanted, request, outbox, span)
            finally:
                stream.close()
        except Exception as error:  # noqa: BLE001 - raised where the outbox is read
            outbox.push(Failed(error))

    def _check_memory(self, wanted: ImageRequest) -> None:
        """Raises ModelTooLarge for a size that there was never memory for."""
        runner, first = self._runner, wanted.drawings[0]
        needs = needed(first, runner.working)
        has = runner.loaded.result().memory_available
        if needs > has and needs > (has := max(has, runner.free())):
            size = smaller(first, runner.traits, runner.working, has)
            raise ModelTooLarge(
                f"{first.width}x{first.height} needs {needs} bytes of memory and the model leaves "
                f"{has}; {remedy(size)}",
                needs=needs,
                has=has,
            )

    async def _follow(
        self,
        stream: AsyncIterator[Any],
        wanted: ImageRequest,
        request: StreamImageRequest,
        outbox: ImageStream[_Event],
        span: ImageSpan,
    ) -> None:
        results: list[ImageResult] = []
        embed = request.embed_parameters or not request.HasField("embed_parameters")
        async for event in stream:
            match event:
                case Progress():
                    outbox.push(event)
                case Started(at):
                    span.started(at)
                    outbox.push(_Begun(wanted))
                case Preview(index, step, pixels):
                    encoding = preview_format(request)
                    data = await writing_images(encode.preview, pixels, encoding)
                    outbox.push(PreviewFile(index, step, encoding, data))
                case Drawn(index, pixels):
                    span.drawn(event)
                    began = time.perf_counter_ns()
                    drawing, encoding = wanted.drawings[index], file_format(request)
                    charge(tokens_of_image(drawing.width, drawing.height, drawing.steps))
                    # By the name that was asked for: runners know a model by different ones.
                    text = parameters(drawing, request.model) if embed else None
                    data = await writing_images(encode.encode, pixels, encoding, text)
                    file = image_file(index, drawing, encoding, data)
                    span.written(began, time.perf_counter_ns())
                    results.append(file.result)
                    outbox.push(file)
                case Finished():
                    span.finished()
                    outbox.push(completed(results, span))
