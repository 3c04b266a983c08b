"""The engine for images."""

from __future__ import annotations

from collections.abc import Callable

from headrace_runner.engine.engine import Engine
from headrace_runner.engine.image.request import Event, ImageRequest
from headrace_runner.engine.image.stream import ImageStream
from headrace_runner.engine.image.worker import ImageWorker, Limits, LoadedPipeline


class ImageEngine(Engine[LoadedPipeline, ImageRequest, Event]):
    """Draws images for many requests, those that are alike together."""

    def __init__(self, load: Callable[[], LoadedPipeline], limits: Limits) -> None:
        super().__init__(load)
        self._limits = limits

    def _make_worker(self, loaded: LoadedPipeline) -> ImageWorker:
        return ImageWorker(
            loaded.pipeline, self._limits, self._send, self._look_up, self.check_wanted
        )

    def _make_stream(self, uid: int) -> ImageStream[Event]:
        return ImageStream(lambda: self._abandon(uid))
