"""The record of a StreamImage: what the client has of each image. Pure.

The same seed gives the same bytes, so a stream that loses its runner is asked for again with what
`started` told. Images that the client has whole are not drawn again; of one that it has in part,
the bytes are compared with those that were sent, and go on behind them. Never is a picture made of
two that differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.errors import RunnerCrashed
from headrace.rpc.access import tokens_of_image
from headrace.telemetry import names
from headrace.v1.image_pb2 import (
    IMAGE_PHASE_DENOISING,
    IMAGE_PHASE_ENCODING,
    IMAGE_PHASE_LOADING,
    IMAGE_PHASE_QUEUED,
    ImageChunk,
    ImageCompleted,
    ImageProgress,
    ImageResult,
    ImageStarted,
    StreamImageRequest,
    StreamImageResponse,
)
from headrace_server.measures import Output
from headrace_server.relay.endings import Ending, ending
from headrace_server.relay.record import (
    AttemptTimes,
    DivergedError,
    OutOfStepError,
    StreamRecord,
)

if TYPE_CHECKING:
    from headrace_server.scheduling.ticket import Wait

# The first byte of a StreamImageResponse is the tag of its event.
_STARTED, _PROGRESS, _PREVIEW, _CHUNK, _COMPLETED = b"\x0a", b"\x12", b"\x1a", b"\x22", b"\x2a"

_SEEDS = 1 << 63


@dataclass(slots=True)
class _File:
    """What the client was sent of one image's file."""

    ending: Ending
    size: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, data: bytes) -> None:
        self.size += len(data)
        self.digest.update(data)
        self.ending.feed(data)


@dataclass(slots=True)
class _Repeat:
    """What the attempt under way has given of one image's file."""

    size: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    """Of what the client has already."""


class ImageRecord(StreamRecord):
    """The record of a StreamImage."""

    __slots__ = (
        *("_advanced", "_count", "_files", "_first", "_format", "_previewed", "_reached"),
        *("_repeats", "_request", "_told"),
    )

    method = "/headrace.v1.ImageService/StreamImage"

    def __init__(self, request: bytes, arrived: float) -> None:
        """`request`: a StreamImageRequest, as the client sent it."""
        super().__init__(arrived)
        message = StreamImageRequest.FromString(request)
        self._request = request
        self._count = message.count if message.HasField("count") else 1
        self._format = message.format
        self._told: ImageStarted | None = None
        """What the client was told of the beginning. Every attempt is held to it."""
        self._files: dict[int, _File] = {}
        self._reached: dict[int, ImageProgress] = {}
        """The furthest that the client was told of each image."""
        self._previewed: dict[int, int] = {}
        """The last step of each image of which the client has a preview."""
        self._first = 0
        """The image that the attempt under way calls 0."""
        self._repeats: dict[int, _Repeat] = {}
        self._advanced = False

    @property
    def images_sent(self) -> int:
        """Images that the client has whole, from the first one on."""
        if self.completed:
            return self._count
        done = 0
        while done in self._files and self._files[done].ending.whole:
            done += 1
        return done

    @property
    def bytes_sent(self) -> int:
        """Bytes that the client has of files."""
        return sum(file.size for file in self._files.values())

    @property
    def begun(self) -> bool:
        return bool(self._files)

    @property
    def counts(self) -> Mapping[str, int]:
        return {"images": self.images_sent, "image_bytes": self.bytes_sent}

    @property
    def attributes(self) -> Mapping[str, int]:
        return {names.HEADRACE_IMAGES_SENT: self.images_sent} if self._told is not None else {}

    @property
    def advanced(self) -> bool:
        """Whether the attempt under way has come beyond what the client was told before it."""
        return self._advanced

    def crashed(self, message: str, cause: str) -> RunnerCrashed:
        sent = self.bytes_sent if self.begun else None
        return RunnerCrashed(message, cause=cause, bytes_sent=sent)

    def output(self) -> Output:
        return Output(images=self.images_sent, drawn_tokens=self._drawn())

    def _drawn(self) -> int:
        """What was drawn, in tokens: of each image as far as the client was told."""
        told = self._told
        if told is None:
            return 0
        steps = self.images_sent * told.steps
        for index, progress in self._reached.items():
            if index >= self.images_sent and progress.phase >= IMAGE_PHASE_DENOISING:
                drawing = progress.phase == IMAGE_PHASE_DENOISING
                steps += progress.step if drawing else told.steps
        return tokens_of_image(told.width, told.height, steps)

    def waiting(self, wait: Wait) -> bytes:
        loads = wait.load_fraction is not None
        progress = ImageProgress(
            phase=IMAGE_PHASE_LOADING if loads else IMAGE_PHASE_QUEUED,
            index=min(self.images_sent, self._count - 1),
            queue_position=wait.queue_position,
            load_fraction=wait.load_fraction,
        )
        return StreamImageResponse(progress=progress).SerializeToString()

    def ask(self, now: float) -> bytes:
        self._attempt = AttemptTimes(now)
        self._advanced = False
        self._repeats = {}
        told = self._told
        if told is None:
            return self._request
        # The last is asked for again, whole or not: somebody has to tell the end.
        self._first = min(self.images_sent, self._count - 1)
        request = StreamImageRequest.FromString(self._request)
        request.request_id = told.id
        request.seed = self._seed(told, self._first)
        request.width, request.height, request.steps = told.width, told.height, told.steps
        request.count = self._count - self._first
        return request.SerializeToString()

    def take(self, data: bytes, now: float) -> bytes | None:
        event = data[:1]
        message = StreamImageResponse.FromString(data)
        changed = False
        if event == _CHUNK:
            changed = self._take_chunk(message.chunk, now)
            if not message.chunk.data:
                return None
        elif event == _PROGRESS:
            changed = self._take_progress(message.progress, now)
        elif event == _PREVIEW:
            preview = message.preview
            preview.index += self._first
            if preview.step <= self._previewed.get(preview.index, -1):
                return None
            self._previewed[preview.index] = preview.step
            changed = self._first > 0
        elif event == _STARTED:
            return data if self._start(message.started, now) else None
        elif event == _COMPLETED:
            self._complete(message.completed, now)
            changed = True
        return message.SerializeToString() if changed else data

    @staticmethod
    def _seed(told: ImageStarted, index: int) -> int:
        return (told.seed + index) % _SEEDS

    def _start(self, started: ImageStarted, now: float) -> bool:
        """Gives whether the client is to be told."""
        self._attempt.started_at = now
        told = self._told
        if told is None:
            self._told = started
            return True
        asked = (self._seed(told, self._first), told.width, told.height, told.steps)
        if (started.seed, started.width, started.height, started.steps) != asked:
            raise OutOfStepError(f"a runner was asked for {asked} and began with other settings")
        return False

    def _take_progress(self, progress: ImageProgress, now: float) -> bool:
        """Puts a runner's progress into that of all attempts; gives whether this has changed it.

        What is known already is not told again: the client stays at the furthest that it was told.
        """
        progress.index += self._first
        if progress.phase < IMAGE_PHASE_ENCODING:
            return self._first > 0
        attempt = self._attempt
        if progress.phase >= IMAGE_PHASE_DENOISING and attempt.first_at is None:
            attempt.first_at = now
        attempt.last_at = now
        reached = self._reached.get(progress.index)
        if reached is None or _place(progress) > _place(reached):
            self._reached[progress.index] = ImageProgress.FromString(progress.SerializeToString())
            if progress.step > 0:
                self._advance()
            return self._first > 0
        if _place(progress) < _place(reached):
            progress.phase = reached.phase
            for name in ("step", "total"):
                progress.ClearField(name)
                if reached.HasField(name):
                    setattr(progress, name, getattr(reached, name))
            return True
        return self._first > 0

    def _take_chunk(self, chunk: ImageChunk, now: float) -> bool:
        """Leaves of a piece what the client does not have; gives whether this has changed it.

        Raises OutOfStepError, DivergedError.
        """
        chunk.index += self._first
        index, data = chunk.index, chunk.data
        repeat = self._repeats.setdefault(index, _Repeat())
        if index >= self._count or chunk.offset != repeat.size:
            raise OutOfStepError(
                f"a piece of image {index} of {self._count} begins at {chunk.offset}, "
                f"and {repeat.size} bytes came before it"
            )
        file = self._files.get(index)
        if file is None:
            file = self._files[index] = _File(ending(self._format))
        known = max(0, min(len(data), file.size - repeat.size))
        repeat.size += len(data)
        if known:
            repeat.digest.update(data[:known])
            # Not before the last of them: until then nothing was passed on.
            if repeat.size >= file.size and repeat.digest.digest() != file.digest.digest():
                raise DivergedError(
                    f"another drew image {index} otherwise: what came of it cannot be completed; "
                    "ask again"
                )
        new = data[known:]
        self._attempt.last_at = now
        if new:
            file.add(new)
            self._advance()
        if known:
            chunk.offset, chunk.data = file.size - len(new), new
        return known > 0 or self._first > 0

    def _complete(self, completed: ImageCompleted, now: float) -> None:
        """Makes the runner's `completed` that of all attempts.

        Raises OutOfStepError, DivergedError.
        """
        results = {result.index + self._first: result for result in completed.images}
        for index in range(self._first, self._count):
            self._check(index, results.get(index))
        told, last = self._told, results[self._count - 1]
        assert told is not None
        images = [
            ImageResult(
                index=index,
                sha256=self._files[index].digest.hexdigest(),
                seed=self._seed(told, index),
                width=told.width,
                height=told.height,
                media_type=last.media_type,
                size_bytes=self._files[index].size,
            )
            for index in range(self._first)
        ]
        for index, result in sorted(results.items()):
            result.index = index
            images.append(result)
        del completed.images[:]
        completed.images.extend(images)
        completed.resumed = self.moves
        self._add_times(completed.timings, now)
        self.completed = True

    def _check(self, index: int, result: ImageResult | None) -> None:
        """Holds what the client has of an image against what its runner says of it."""
        file, repeat = self._files.get(index), self._repeats.get(index)
        if self._told is None or result is None or file is None or repeat is None:
            raise OutOfStepError(f"a runner completed a stream without image {index}")
        if repeat.size < file.size:
            raise DivergedError(
                f"another drew image {index} otherwise: its file is shorter than what came of it; "
                "ask again"
            )
        if (result.sha256, result.size_bytes) != (file.digest.hexdigest(), file.size):
            raise OutOfStepError(f"image {index} is not the file that its runner says it is")

    def _advance(self) -> None:
        self._deaths = self._kills = 0
        self._advanced = True


def _place(progress: ImageProgress) -> tuple[int, int]:
    """How far an image is."""
    return progress.phase, progress.step
