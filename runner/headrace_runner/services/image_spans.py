"""The record of one request for images: a GenAI span with its phases, metrics, a log line.

Neither the prompt nor a picture is recorded.
"""

from __future__ import annotations

import time

from headrace.telemetry import names
from headrace.v1.image_pb2 import StreamImageRequest
from headrace_runner.config import RunnerConfig
from headrace_runner.engine.image.request import Drawn, ImageRequest, Part
from headrace_runner.models.pipeline import Phase
from headrace_runner.services.spans import RequestSpan

_SPANS = {
    Phase.ENCODING: names.SPAN_IMAGE_ENCODING,
    Phase.DENOISING: names.SPAN_IMAGE_DENOISING,
    Phase.DECODING: names.SPAN_IMAGE_DECODING,
}


class ImageSpan(RequestSpan):
    """The record of one request for images. It also sums up where the time went, in nanoseconds."""

    def __init__(
        self, request: StreamImageRequest, request_id: str, config: RunnerConfig, arrived: int
    ) -> None:
        super().__init__(request, request_id, config, arrived)
        self._accepted = False
        self.started_at = 0
        self.encoding = 0
        """Of prompts and input images."""
        self.drawing = 0
        """Denoising, decoding, and writing the files."""
        self._parts: list[tuple[Part, int]] = []
        """With how many images each was of."""
        self._batches: set[int] = set()
        self._written: list[tuple[int, int]] = []

    def accepted(self, request: ImageRequest) -> None:
        """The request is valid and goes to the engine."""
        self._accepted = True
        first = request.drawings[0]
        asked = {
            names.HEADRACE_IMAGE_WIDTH: first.width,
            names.HEADRACE_IMAGE_HEIGHT: first.height,
            names.HEADRACE_IMAGE_STEPS: first.steps,
            names.HEADRACE_IMAGE_COUNT: len(request.drawings),
            names.HEADRACE_IMAGE_INPUTS: len(first.input_images),
        }
        self._outcome |= {
            "size": f"{first.width}x{first.height}",
            "steps": first.steps,
            "count": len(request.drawings),
        }
        self._span.set_attributes({**asked, names.GEN_AI_REQUEST_SEED: first.seed})

    def started(self, at: int) -> None:
        """The engine begins with the first image."""
        self.started_at = at

    def drawn(self, event: Drawn) -> None:
        """One image is ready."""
        if event.batch in self._batches:
            return
        self._batches.add(event.batch)
        for part in event.parts:
            self._parts.append((part, event.together))
            if part.phase is Phase.ENCODING:
                self.encoding += part.ended - part.began
            else:
                self.drawing += part.ended - part.began

    def written(self, began: int, ended: int) -> None:
        """A file is ready."""
        self._written.append((began, ended))
        self.drawing += ended - began

    def finished(self) -> None:
        """The request has ended as it should."""
        self._outcome["outcome"] = "drawn"

    def end(self) -> None:
        """Closes the record. Called once, on every way out."""
        self._outcome["images"] = len(self._written)
        if self._span.is_recording() and self._accepted:
            now = time.perf_counter_ns()
            self._part(names.SPAN_QUEUE, self.arrived, self.started_at or now)
            for part, together in self._parts:
                told = {names.HEADRACE_IMAGE_TOGETHER: together}
                if part.phase is Phase.DENOISING:
                    told[names.HEADRACE_IMAGE_STEPS] = part.steps
                self._part(_SPANS[part.phase], part.began, part.ended, told)
            for began, ended in self._written:
                self._part(names.SPAN_IMAGE_WRITING, began, ended)
        self._close("images ended")
