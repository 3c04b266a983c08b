"""The record of one request: a GenAI span with queue, prefill and decode, metrics, a log line.

Prompt and output are not recorded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from opentelemetry import metrics, trace
from opentelemetry.util.types import AttributeValue

from headrace.telemetry import names
from headrace.telemetry.generation import Request, request_attributes
from headrace.telemetry.outcome import kind_of, mark
from headrace.v1.completion_pb2 import StreamCompletionRequest
from headrace_runner.config import RunnerConfig
from headrace_runner.engine.text.request import Delta, Finished, GenerationRequest, Prefill

logger = logging.getLogger(__name__)

MAX_CHUNKS = 32
"""Spans for the passes of one prefill at most. Beyond that each stands for several of them."""

_tracer = trace.get_tracer("headrace.runner")
_meter = metrics.get_meter("headrace.runner")
_duration = names.GEN_AI_REQUEST_DURATION.create(_meter)
_first_token = names.GEN_AI_TIME_TO_FIRST_TOKEN.create(_meter)
_per_token = names.GEN_AI_TIME_PER_OUTPUT_TOKEN.create(_meter)


class RequestSpan:
    """The record of one request, whole on every way out. Times are `perf_counter_ns` of this
    process."""

    def __init__(
        self,
        request: Request,
        request_id: str,
        config: RunnerConfig,
        arrived: int,
    ) -> None:
        self.arrived = arrived
        # Spans count from 1970; one reading of both clocks ties them together.
        self._offset = time.time_ns() - time.perf_counter_ns()
        self._outcome: dict[str, object] = {"request_id": request_id}
        told = request_attributes(request)
        self._attributes: dict[str, AttributeValue] = {**told}
        self._span = _tracer.start_span(
            f"{told[names.GEN_AI_OPERATION_NAME]} {request.model}",
            attributes={
                **self._attributes,
                names.GEN_AI_RESPONSE_ID: request_id,
                names.GEN_AI_RESPONSE_MODEL: config.name,
                names.HEADRACE_MODEL_DIGEST: config.digest,
                names.HEADRACE_RUNNER_ID: config.id,
            },
            start_time=arrived + self._offset,
        )

    def failed(self, error: BaseException) -> None:
        """The request has ended otherwise. Being cancelled is nobody's fault."""
        kind = kind_of(error)
        self._attributes[names.ERROR_TYPE] = kind
        self._outcome["outcome"] = kind
        mark(self._span, kind)

    def _close(self, line: str) -> None:
        """Ends it, and logs how it went."""
        now = time.perf_counter_ns()
        self._span.end(now + self._offset)
        seconds = (now - self.arrived) / 1e9
        _duration.record(seconds, self._attributes)
        logger.info(line, extra=self._outcome | {"seconds": round(seconds, 3)})

    def _part(
        self,
        name: str,
        start: int,
        end: int,
        attributes: dict[str, int] | None = None,
        parent: trace.Span | None = None,
    ) -> trace.Span:
        whole = trace.set_span_in_context(parent or self._span)
        span = _tracer.start_span(
            name, whole, attributes=attributes, start_time=start + self._offset
        )
        span.end(end + self._offset)
        return span


class GenerationSpan(RequestSpan):
    """The record of one completion."""

    def __init__(
        self,
        request: StreamCompletionRequest,
        request_id: str,
        config: RunnerConfig,
        arrived: int,
    ) -> None:
        super().__init__(request, request_id, config, arrived)
        # What has been reached, for the spans of the parts; 0: not yet.
        self._accepted_at = self._started_at = self._first_token_at = self._ended_at = 0
        self._cached = 0
        self._chunks: list[Prefill] = []
        self._output: dict[int, int] = {}
        """Tokens of each choice."""

    def accepted(self, request: GenerationRequest) -> None:
        """The request is valid and goes to the engine."""
        self._accepted_at = time.perf_counter_ns()
        self._outcome["prompt_tokens"] = len(request.prompt)
        if not self._span.is_recording():
            return
        sampling = request.sampling
        self._span.set_attributes(
            {
                names.GEN_AI_REQUEST_MAX_TOKENS: request.max_tokens,
                names.GEN_AI_REQUEST_TEMPERATURE: sampling.temperature,
                names.GEN_AI_REQUEST_TOP_P: sampling.top_p,
                names.GEN_AI_REQUEST_TOP_K: sampling.top_k,
                names.GEN_AI_REQUEST_SEED: sampling.seed,
                names.GEN_AI_USAGE_INPUT_TOKENS: len(request.prompt),
            }
        )
        if resumed := sum(map(len, request.resume)):
            self._span.set_attribute(names.HEADRACE_RESUMED_TOKENS, resumed)

    def started(self, at: int, cached: int) -> None:
        """The engine begins its prefill, of which so many tokens are cached."""
        self._started_at, self._cached = at, cached
        self._outcome["cached_tokens"] = cached
        self._span.set_attribute(names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, cached)

    def prefilled(self, event: Prefill) -> None:
        """More of the prompt has been computed."""
        if len(self._chunks) == MAX_CHUNKS:
            self._chunks = halved(self._chunks)
        self._chunks.append(event)

    def advanced(self, event: Delta) -> None:
        """There is more output."""
        self._output[event.choice] = event.output_tokens
        if not self._first_token_at:
            self._first_token_at = time.perf_counter_ns()

    def finished(self, event: Finished) -> None:
        """The request has ended as it should."""
        reasons = [end.reason.value for end in event.choices]
        self._output = {i: end.output_tokens for i, end in enumerate(event.choices)}
        self._first_token_at, self._ended_at = event.first_token_at, event.at
        self._outcome |= {
            "outcome": ",".join(sorted(set(reasons))),
            "first_token_seconds": round((event.first_token_at - self.arrived) / 1e9, 3),
        }
        if self._span.is_recording():
            self._span.set_attribute(names.GEN_AI_RESPONSE_FINISH_REASONS, reasons)
        _first_token.record((event.first_token_at - self.arrived) / 1e9, self._attributes)
        longest = max(end.output_tokens for end in event.choices)
        if longest > 1:
            seconds = (event.at - event.first_token_at) / 1e9
            _per_token.record(seconds / (longest - 1), self._attributes)

    def end(self) -> None:
        """Closes the record. Called once, on every way out."""
        self._outcome["output_tokens"] = sum(self._output.values())
        if self._span.is_recording():
            self._add_parts(self._ended_at or time.perf_counter_ns())
        self._close("completion ended")

    def _add_parts(self, ended: int) -> None:
        """What it came to, as spans within this one."""
        if not self._accepted_at:
            return
        self._part(names.SPAN_QUEUE, self.arrived, self._started_at or ended)
        if not self._started_at:
            return
        prefilled = self._first_token_at or ended
        computed = {
            names.HEADRACE_PREFILL_TOKENS: sum(chunk.tokens for chunk in self._chunks),
            names.HEADRACE_PREFILL_CACHED_TOKENS: self._cached,
            names.HEADRACE_PREFILL_CHUNKS: sum(chunk.passes for chunk in self._chunks),
        }
        prefill = self._part(names.SPAN_PREFILL, self._started_at, prefilled, computed)
        for chunk in self._chunks:
            passes = {
                names.HEADRACE_PREFILL_TOKENS: chunk.tokens,
                names.HEADRACE_PREFILL_CHUNKS: chunk.passes,
            }
            until = min(chunk.at, prefilled)
            self._part(names.SPAN_PREFILL_CHUNK, chunk.began, until, passes, prefill)
        if self._first_token_at:
            at = self._first_token_at + self._offset
            self._span.add_event(names.EVENT_FIRST_TOKEN, timestamp=at)
            output = {names.GEN_AI_USAGE_OUTPUT_TOKENS: sum(self._output.values())}
            self._span.set_attributes(output)
            self._part(names.SPAN_DECODE, self._first_token_at, ended, output)


def halved(chunks: Sequence[Prefill]) -> list[Prefill]:
    """An even number of chunks as half of it, each with the one after it."""
    return [chunks[i + 1].after(chunks[i]) for i in range(0, len(chunks), 2)]
