"""The record of one request to score: a GenAI span with its parts, metrics, a log line.

Neither a text nor a score is recorded.
"""

from __future__ import annotations

import time

from headrace.telemetry import names
from headrace.v1.score_pb2 import ScoreRequest
from headrace_runner.config import RunnerConfig
from headrace_runner.engine.text.request import Scored
from headrace_runner.services.score_inputs import Sequences
from headrace_runner.services.spans import RequestSpan


class ScoreSpan(RequestSpan):
    """The record of one request to score."""

    def __init__(
        self, request: ScoreRequest, request_id: str, config: RunnerConfig, arrived: int
    ) -> None:
        super().__init__(request, request_id, config, arrived)
        # What has been reached; 0: not yet.
        self._accepted_at = self._started_at = 0
        self._scored: Scored | None = None
        self._cached = 0

    def accepted(self, sequences: Sequences) -> None:
        """The request is valid and goes to the engine."""
        self._accepted_at = time.perf_counter_ns()
        tokens, count = sequences.prompt_tokens, len(sequences.continuations)
        self._outcome |= {"continuations": count, "prompt_tokens": tokens}
        self._span.set_attributes(
            {names.GEN_AI_USAGE_INPUT_TOKENS: tokens, names.HEADRACE_SCORE_CONTINUATIONS: count}
        )

    def started(self, at: int, cached: int) -> None:
        """The engine has begun with the prompt, of which so many tokens are cached."""
        self._started_at, self._cached = at, cached
        self._outcome["cached_tokens"] = cached
        self._span.set_attribute(names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, cached)

    def finished(self, event: Scored) -> None:
        """The request has ended as it should."""
        self._scored = event
        self._outcome["outcome"] = "scored"

    def end(self) -> None:
        """Closes the record. Called once, on every way out."""
        if self._span.is_recording() and self._accepted_at:
            ended = time.perf_counter_ns() if self._scored is None else self._scored.at
            self._part(names.SPAN_QUEUE, self.arrived, self._started_at or ended)
            if self._started_at:
                self._add_parts(ended)
        self._close("score ended")

    def _add_parts(self, ended: int) -> None:
        prefilled = ended if self._scored is None else self._scored.prefilled_at
        cached = {names.HEADRACE_PREFILL_CACHED_TOKENS: self._cached}
        self._part(names.SPAN_PREFILL, self._started_at, prefilled, cached)
        if self._scored is not None:
            passes = {names.HEADRACE_SCORE_PASSES: self._scored.passes}
            self._part(names.SPAN_SCORE, prefilled, ended, passes)
