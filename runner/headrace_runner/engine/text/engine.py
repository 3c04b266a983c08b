"""The engine for text."""

from __future__ import annotations

from collections.abc import Callable

from headrace_runner.engine.engine import Engine
from headrace_runner.engine.text.request import Event, TextRequest
from headrace_runner.engine.text.stream import TextStream
from headrace_runner.engine.text.worker import Limits, TextWorker
from headrace_runner.models.load import LoadedModel
from headrace_runner.models.tokenizer import Tokenizer


class TextEngine(Engine[LoadedModel, TextRequest, Event]):
    """Generates and scores text for many requests at once."""

    def __init__(
        self, load: Callable[[], LoadedModel], tokenizer: Tokenizer, limits: Limits
    ) -> None:
        super().__init__(load)
        self._tokenizer = tokenizer
        self._limits = limits

    def _make_worker(self, loaded: LoadedModel) -> TextWorker:
        return TextWorker(loaded, self._tokenizer, self._limits, self._send)

    def _make_stream(self, uid: int) -> TextStream:
        return TextStream(lambda: self._abandon(uid), lambda behind: self._park(uid, behind))
