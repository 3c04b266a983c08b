"""What a runner says that draws images: every byte by the seed, as with a real one."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from collections.abc import Iterator

from headrace.v1.image_pb2 import (
    IMAGE_PHASE_DECODING,
    IMAGE_PHASE_DENOISING,
    IMAGE_PHASE_ENCODING,
    ImageChunk,
    ImageCompleted,
    ImagePhase,
    ImagePreview,
    ImageProgress,
    ImageResult,
    ImageStarted,
    StreamImageRequest,
    StreamImageResponse,
)

CHOSEN = 2**63 - 2
"""The seed of who names none: the next but one begins anew at 0."""
SIDE, STEPS = 16, 8
PIECE = 200
"""Bytes of a chunk: some five to a file."""


def png(seed: int, side: int = SIDE) -> bytes:
    """A picture of noise."""
    noise = random.Random(seed)
    rows = b"".join(b"\0" + noise.randbytes(3 * side) for _ in range(side))

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def drawn(
    request: StreamImageRequest, *, batch: int = 1, piece: int = PIECE, runner: str = "r1"
) -> Iterator[StreamImageResponse]:
    """The messages of a stream, `batch` images at a time."""
    seed = request.seed if request.HasField("seed") else CHOSEN
    side, steps, count = request.width or SIDE, request.steps or STEPS, request.count or 1
    started = ImageStarted(
        id=request.request_id or "made",
        model=request.model,
        runner=runner,
        seed=seed,
        width=side,
        height=side,
        steps=steps,
    )
    yield StreamImageResponse(started=started)
    files = [png((seed + index) % 2**63, side) for index in range(count)]
    for begin in range(0, count, batch):
        together = range(begin, min(begin + batch, count))
        for phase, total in (
            (IMAGE_PHASE_ENCODING, 1),
            (IMAGE_PHASE_DENOISING, steps),
            (IMAGE_PHASE_DECODING, 1),
        ):
            for step in range(total + 1):
                for index in together:
                    yield _progress(phase, index, step, total)
                    if phase == IMAGE_PHASE_DENOISING and step and request.HasField("preview"):
                        shown = ImagePreview(index=index, step=step, data=bytes([step]))
                        yield StreamImageResponse(preview=shown)
        for index in together:
            for at in range(0, len(files[index]), piece):
                chunk = ImageChunk(index=index, offset=at, data=files[index][at : at + piece])
                yield StreamImageResponse(chunk=chunk)
    end = ImageCompleted()
    for index, file in enumerate(files):
        end.images.append(
            ImageResult(
                index=index,
                sha256=hashlib.sha256(file).hexdigest(),
                seed=(seed + index) % 2**63,
                width=side,
                height=side,
                media_type="image/png",
                size_bytes=len(file),
            )
        )
    yield StreamImageResponse(completed=end)


def _progress(
    phase: ImagePhase.ValueType, index: int, step: int, total: int
) -> StreamImageResponse:
    return StreamImageResponse(
        progress=ImageProgress(phase=phase, index=index, step=step, total=total)
    )
