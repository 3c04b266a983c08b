"""What a client hears of its images, as messages of the contract. Pure but for the clock."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from headrace.v1.common_pb2 import Timings
from headrace.v1.image_pb2 import (
    ImageChunk,
    ImageCompleted,
    ImagePhase,
    ImagePreview,
    ImageProgress,
    ImageResult,
    StreamImageResponse,
)
from headrace_runner.engine.image.request import Progress
from headrace_runner.engine.image.stream import Slot
from headrace_runner.engine.stream import Last
from headrace_runner.images.encode import Format, media_type
from headrace_runner.models.pipeline import Drawing, Phase
from headrace_runner.services.image_spans import ImageSpan

CHUNK_BYTES = 64 << 10

_PHASES = {
    None: ImagePhase.IMAGE_PHASE_QUEUED,
    Phase.ENCODING: ImagePhase.IMAGE_PHASE_ENCODING,
    Phase.DENOISING: ImagePhase.IMAGE_PHASE_DENOISING,
    Phase.DECODING: ImagePhase.IMAGE_PHASE_DECODING,
}


@dataclass(frozen=True, slots=True)
class PreviewFile:
    """What an image looks like after a step, as a file."""

    index: int
    step: int
    format: Format
    data: bytes

    @property
    def slot(self) -> Slot:
        return "preview", self.index

    @property
    def cost(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image, as a file."""

    result: ImageResult
    data: bytes


@dataclass(frozen=True, slots=True)
class Completed(Last):
    """All files are there."""

    message: ImageCompleted


def image_file(index: int, drawing: Drawing, format: Format, data: bytes) -> ImageFile:
    """A finished file with its description."""
    result = ImageResult(
        index=index,
        sha256=hashlib.sha256(data).hexdigest(),
        seed=drawing.seed,
        width=drawing.width,
        height=drawing.height,
        media_type=media_type(format),
        size_bytes=len(data),
    )
    return ImageFile(result, data)


def progress(event: Progress) -> StreamImageResponse:
    """How far it is; what is left of the time is as of now."""
    message = ImageProgress(
        phase=_PHASES[event.phase],
        index=event.index,
        step=event.step,
        total=event.total,
        queue_position=event.position,
    )
    if event.due is not None:
        message.remaining.CopyFrom(_duration(event.due - time.perf_counter_ns()))
    return StreamImageResponse(progress=message)


def loading(fraction: float) -> StreamImageResponse:
    """The model is not there yet."""
    phase = ImagePhase.IMAGE_PHASE_LOADING
    return StreamImageResponse(progress=ImageProgress(phase=phase, load_fraction=fraction))


def preview(event: PreviewFile) -> StreamImageResponse:
    """A picture of the unfinished work."""
    message = ImagePreview(
        index=event.index,
        step=event.step,
        media_type=media_type(event.format),
        data=event.data,
    )
    return StreamImageResponse(preview=message)


def chunks(file: ImageFile) -> Iterator[StreamImageResponse]:
    """A file in pieces."""
    index, data = file.result.index, memoryview(file.data)
    for offset in range(0, len(data), CHUNK_BYTES):
        piece = bytes(data[offset : offset + CHUNK_BYTES])
        yield StreamImageResponse(chunk=ImageChunk(index=index, offset=offset, data=piece))


def completed(results: list[ImageResult], span: ImageSpan) -> Completed:
    """The end."""
    timings = Timings(
        queue=_duration(span.started_at - span.arrived),
        load=Duration(),
        prefill=_duration(span.encoding),
        decode=_duration(span.drawing),
        total=_duration(time.perf_counter_ns() - span.arrived),
    )
    ordered = sorted(results, key=lambda result: result.index)
    return Completed(ImageCompleted(images=ordered, timings=timings))


def _duration(nanoseconds: int) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(max(0, nanoseconds))
    return duration
