"""Folds a stream of images into events and files, each held against its checksum. Pure."""

from __future__ import annotations

import hashlib
import time

from headrace import _convert, types
from headrace._folds import Ordered, broken
from headrace.errors import DataLoss
from headrace.v1 import image_pb2


class ImageFold(Ordered[types.ImageStarted, types.ImageCompleted]):
    """Folds a stream of images."""

    def __init__(self, count: int) -> None:
        """`count`: images that were asked for."""
        super().__init__()
        self._count = count
        self._begin = time.perf_counter()
        self._first_preview: float | None = None
        self._files: dict[int, bytearray] = {}
        self._images: tuple[types.ImageResult, ...] = ()

    def add(self, message: image_pb2.StreamImageResponse) -> types.ImageEvent | None:
        """Takes the next message; gives its event.

        Raises:
            RpcFailed: the stream breaks its contract.
            DataLoss: a file has not the checksum that the server names.
        """
        self._require_open()
        event = _convert.image_event(message)
        match event:
            case types.ImageChunk(index, offset, data):
                self._require_started()
                file = self._files.setdefault(index, bytearray())
                if offset != len(file):
                    raise broken(f"the stream left out a part of image {index}")
                file += data
            case types.ImagePreview():
                if self._first_preview is None:
                    self._first_preview = time.perf_counter() - self._begin
            case types.ImageStarted():
                self._start(event)
            case types.ImageCompleted():
                self._require_started()
                self._images = tuple(map(self._checked, message.completed.images))
                indices = [image.index for image in self._images]
                if indices != [*range(self._count)] or self._files:
                    what = f"just the {self._count} asked for"
                    raise broken(f"the stream was completed without {what}")
                self._completed = event
        return event

    def result(self, trace_id: str) -> types.Images:
        """All images."""
        completed = self._require_completed()
        return types.Images(
            images=self._images,
            started=self._require_started(),
            completed=completed,
            time_to_first_preview=self._first_preview,
            trace_id=trace_id,
        )

    def _checked(self, result: image_pb2.ImageResult) -> types.ImageResult:
        data = bytes(self._files.pop(result.index, b""))
        if hashlib.sha256(data).hexdigest() != result.sha256:
            raise DataLoss(
                f"image {result.index} was damaged on its way: its {len(data)} bytes have not the "
                "checksum that the server names; ask again with the same seed"
            )
        return _convert.image_result(result, data)
