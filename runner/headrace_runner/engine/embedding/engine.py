"""The engine for embeddings."""

from __future__ import annotations

from collections.abc import Callable

from headrace_runner.engine.embedding.request import EmbeddingRequest, Event
from headrace_runner.engine.embedding.worker import EmbeddingWorker, Limits
from headrace_runner.engine.engine import Engine
from headrace_runner.engine.stream import EventStream
from headrace_runner.models.encoders.encoder import Encoder


class EmbeddingEngine(Engine[Encoder, EmbeddingRequest, Event]):
    """Embeds the inputs of many requests, those that are about equally long together."""

    def __init__(self, load: Callable[[], Encoder], limits: Limits) -> None:
        super().__init__(load)
        self._limits = limits

    def _make_worker(self, loaded: Encoder) -> EmbeddingWorker:
        return EmbeddingWorker(loaded, self._limits, self._send)

    def _make_stream(self, uid: int) -> EventStream[Event]:
        return EventStream(lambda: self._abandon(uid))
