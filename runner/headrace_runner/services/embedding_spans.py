"""The record of one request for embeddings: a GenAI span with its parts, metrics, a log line.

Neither a text nor a vector is recorded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from headrace.telemetry import names
from headrace.v1.embedding_pb2 import EmbedRequest
from headrace_runner.config import RunnerConfig
from headrace_runner.engine.embedding.request import Finished
from headrace_runner.services.embedding_inputs import Input, Wanted
from headrace_runner.services.spans import RequestSpan


class EmbeddingSpan(RequestSpan):
    """The record of one request for embeddings."""

    def __init__(
        self, request: EmbedRequest, request_id: str, config: RunnerConfig, arrived: int
    ) -> None:
        super().__init__(request, request_id, config, arrived)
        # What has been reached; 0: not yet.
        self._accepted_at = self._started_at = self._ended_at = 0
        self._batches = 0

    def accepted(self, inputs: Sequence[Input], wanted: Wanted) -> None:
        """The request is valid and goes to the engine."""
        self._accepted_at = time.perf_counter_ns()
        tokens = sum(len(given.tokens) for given in inputs)
        self._outcome |= {"inputs": len(inputs), "prompt_tokens": tokens}
        self._span.set_attributes(
            {
                names.GEN_AI_USAGE_INPUT_TOKENS: tokens,
                names.GEN_AI_EMBEDDINGS_DIMENSION_COUNT: wanted.dimensions,
                names.HEADRACE_EMBEDDING_INPUTS: len(inputs),
            }
        )

    def started(self, at: int) -> None:
        """The engine begins with the first batch."""
        self._started_at = at

    def finished(self, event: Finished) -> None:
        """The request has ended as it should."""
        self._ended_at, self._batches = event.at, event.batches
        self._outcome["outcome"] = "embedded"

    def end(self) -> None:
        """Closes the record. Called once, on every way out."""
        if self._span.is_recording() and self._accepted_at:
            ended = self._ended_at or time.perf_counter_ns()
            self._part(names.SPAN_QUEUE, self.arrived, self._started_at or ended)
            if self._started_at:
                told = {names.HEADRACE_EMBEDDING_BATCHES: self._batches} if self._batches else None
                self._part(names.SPAN_EMBEDDING, self._started_at, ended, told)
        self._close("embedding ended")
