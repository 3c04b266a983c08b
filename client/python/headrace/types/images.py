"""What images are asked for with, the events of their stream, and the files that come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from os import PathLike
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict

from headrace.types.completion import Timings

ImageFormat = Literal["png", "jpeg", "webp"]
"""The encoding of an image file."""

InputImage: TypeAlias = str | PathLike[str] | bytes
"""An image to start from: the path of a PNG, JPEG or WebP file, or its bytes. Up to 16 MiB."""


class ImageOptions(TypedDict, total=False):
    """How images are drawn: keyword arguments of the image calls.

    What is absent or None is left to the model's own default.
    """

    negative_prompt: str | None
    """What not to draw, for models that take it."""

    width: int | None
    """Pixels. 16 to 8192, in steps that the model states."""

    height: int | None
    """Pixels, as with `width`."""

    steps: int | None
    """Denoising steps. 1 to 1,000."""

    guidance: float | None
    """How closely the prompt is followed, for models that take it. 0 to 100."""

    seed: int | None
    """Fixes the noise; image i of several uses seed + i. 0 to 2^63 - 1; absent: one is chosen."""

    count: int | None
    """How many images. 1 to 16, default 1."""

    input_images: Sequence[InputImage] | None
    """Images to start from, for models that take them."""

    strength: float | None
    """How much of the input image is kept: higher is closer to it. 0 to 1."""

    loras: Mapping[str, float] | Sequence[str] | None
    """Adapters to apply by name, with their weights where not 1. -4 to 4."""

    format: ImageFormat | None
    """Encoding of the files. Default PNG."""

    embed_parameters: bool | None
    """Whether a file carries the prompt and settings it was made with. Default true."""

    preview_every: int | None
    """A preview every so many steps. Absent: none."""

    preview_format: ImageFormat | None
    """Encoding of the previews. Default JPEG."""

    keep_alive: float | timedelta | None
    """How long the model stays loaded afterwards, in seconds. Negative: until unloaded."""

    priority: int | None
    """Requests of a higher priority go first where there is a queue. -100 to 100."""

    request_id: str | None
    """The caller's name for the request. Up to 128 printable ASCII characters."""


class ImagePhase(StrEnum):
    """A part of the work on an image."""

    QUEUED = "queued"
    """Waiting for a place."""

    LOADING = "loading"
    """The model is being loaded."""

    ENCODING = "encoding"
    """The prompt and the input images are being encoded."""

    DENOISING = "denoising"
    """The denoising steps."""

    DECODING = "decoding"
    """The image is being decoded and written as a file."""

    UNKNOWN = "unknown"
    """A phase that this version of the SDK does not know."""


@dataclass(frozen=True, slots=True)
class ImageStarted:
    """Drawing begins. Comes exactly once."""

    id: str
    """The request's id: the caller's, or the one that was made for it."""

    model: str
    """Name of the model, as asked for."""

    digest: str
    """Digest of the model that serves the request."""

    runner: str
    """Id of the runner that serves the request."""

    seed: int
    """The seed of the first image: the caller's, or the one that was chosen."""

    width: int
    """Pixels of the images to come."""

    height: int
    """Pixels of the images to come."""

    steps: int
    """Steps of each image."""


@dataclass(frozen=True, slots=True)
class ImageProgress:
    """How the work goes. What is not known is None."""

    phase: ImagePhase
    """What is being done."""

    index: int
    """Which image, from 0."""

    step: int | None = None
    """Steps done in this phase."""

    total: int | None = None
    """Steps of this phase in all."""

    queue_position: int | None = None
    """Requests that are ahead in the queue."""

    load_fraction: float | None = None
    """How much of the model is loaded, 0 to 1."""

    remaining: float | None = None
    """Estimate of the seconds until the last image is ready."""


@dataclass(frozen=True, slots=True)
class ImagePreview:
    """An image of the unfinished work."""

    index: int
    """Which image, from 0."""

    step: int
    """The step after which it was made."""

    media_type: str
    """Of the data, such as "image/jpeg"."""

    data: bytes = field(repr=False)
    """The file."""


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """A piece of a finished file."""

    index: int
    """Which image, from 0."""

    offset: int
    """Where the piece begins in the file, in bytes. Pieces come in order."""

    data: bytes = field(repr=False)
    """The piece."""


@dataclass(frozen=True, slots=True)
class ImageCompleted:
    """The end of a stream. Comes exactly once, and last."""

    timings: Timings
    """Where the time went: `prefill` is encoding, `decode` is denoising and decoding."""

    resumed: int
    """How many times the work moved to another runner."""


ImageEvent = ImageStarted | ImageProgress | ImagePreview | ImageChunk | ImageCompleted
"""One event of a stream of images."""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One finished file, whose bytes have the checksum that the server named."""

    index: int
    """Which image, from 0."""

    seed: int
    """The seed it was made with."""

    width: int
    """Pixels."""

    height: int
    """Pixels."""

    media_type: str
    """Such as "image/png"."""

    sha256: str
    """Of the file, 64 hexadecimal digits."""

    data: bytes = field(repr=False)
    """The file."""

    def save(self, path: str | PathLike[str]) -> Path:
        """Writes the file, in place of one that is there, and gives its path."""
        target = Path(path)
        target.write_bytes(self.data)
        return target


@dataclass(frozen=True, slots=True)
class Images:
    """All that came of a request for images."""

    images: tuple[ImageResult, ...]
    """The files, by index."""

    started: ImageStarted
    """What served the request, and with which settings."""

    completed: ImageCompleted
    """How it ended."""

    time_to_first_preview: float | None
    """Seconds from the call to its first preview, as the client saw it. None without one."""

    trace_id: str
    """The trace of this call: 32 hexadecimal digits, to look for in logs and traces."""

    @property
    def timings(self) -> Timings:
        """Where the time went, in seconds."""
        return self.completed.timings


@dataclass(frozen=True, slots=True)
class ImageTraits:
    """What a model for images takes, and what it does where a request does not say; in pixels."""

    width: int
    """Where a request does not say."""

    height: int
    """Where a request does not say."""

    size_step: int
    """Width and height are multiples of this."""

    min_size: int
    """Least width and height."""

    max_size: int
    """Greatest width and height."""

    steps: int
    """Denoising steps, where a request does not say."""

    max_steps: int
    """Most denoising steps."""

    guidance: float | None
    """Where a request does not say. None: it takes none."""

    negative_prompt: bool
    """Whether it takes one."""

    max_input_images: int
    """How many it takes. 0: it draws from text alone."""

    strength: float | None
    """Of an input image, where a request does not say: 1 keeps it whole. None: it takes none."""

    max_batch: int
    """Images of the same size and steps that it draws together."""
