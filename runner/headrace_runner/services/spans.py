"""The record of one generation: a GenAI span with queue, prefill and decode, metrics, a log line.

Prompt and output are not recorded.
"""

from __future__ import annotations

import asyncio
import logging
import time

from opentelemetry import metrics, trace
from opentelemetry.util.types import AttributeValue

from headrace.errors import HeadraceError
from headrace.telemetry import names
from headrace.v1.completion_pb2 import StreamCompletionRequest
from headrace_runner.config import RunnerConfig
from headrace_runner.engine.text.request import Finished, GenerationRequest

logger = logging.getLogger(__name__)

_tracer = trace.get_tracer("headrace.runner")
_meter = metrics.get_meter("headrace.runner")
_duration = names.GEN_AI_REQUEST_DURATION.create(_meter)
_first_token = names.GEN_AI_TIME_TO_FIRST_TOKEN.create(_meter)
_per_token = names.GEN_AI_TIME_PER_OUTPUT_TOKEN.create(_meter)


class GenerationSpan:
    """The record of one completion. Times are `perf_counter_ns` of this process."""

    def __init__(
        self,
        request: StreamCompletionRequest,
        request_id: str,
        config: RunnerConfig,
        arrived: int,
    ) -> None:
        chat = request.WhichOneof("input") == "chat"
        operation = names.OPERATION_CHAT if chat else names.OPERATION_TEXT_COMPLETION
        self.arrived = arrived
        # Spans count from 1970; one reading of both clocks ties them together.
        self._offset = time.time_ns() - time.perf_counter_ns()
        self._outcome: dict[str, object] = {"request_id": request_id, "model": config.name}
        self._attributes: dict[str, AttributeValue] = {
            names.GEN_AI_OPERATION_NAME: operation,
            names.GEN_AI_PROVIDER_NAME: names.GEN_AI_PROVIDER,
            names.GEN_AI_REQUEST_MODEL: request.model,
        }
        self._span = _tracer.start_span(
            f"{operation} {request.model}",
            attributes={
                **self._attributes,
                names.GEN_AI_RESPONSE_ID: request_id,
                names.GEN_AI_RESPONSE_MODEL: config.name,
                names.HEADRACE_MODEL_DIGEST: config.digest,
                names.HEADRACE_RUNNER_ID: config.id,
            },
            start_time=arrived + self._offset,
        )

    def accepted(self, request: GenerationRequest) -> None:
        """The request is valid and goes to the engine."""
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

    def started(self, at: int, cached: int) -> None:
        """The engine begins its prefill, of which so many tokens are cached."""
        self._outcome["cached_tokens"] = cached
        self._span.set_attribute(names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, cached)
        self._part(names.SPAN_QUEUE, self.arrived, at)

    def finished(self, event: Finished) -> None:
        """The request has ended as it should."""
        reasons = [end.reason.value for end in event.choices]
        tokens = sum(end.output_tokens for end in event.choices)
        self._outcome |= {
            "outcome": ",".join(sorted(set(reasons))),
            "output_tokens": tokens,
            "first_token_seconds": round((event.first_token_at - self.arrived) / 1e9, 3),
        }
        self._part(names.SPAN_PREFILL, event.started_at, event.first_token_at)
        self._part(names.SPAN_DECODE, event.first_token_at, event.at)
        if self._span.is_recording():
            self._span.set_attributes(
                {
                    names.GEN_AI_USAGE_OUTPUT_TOKENS: tokens,
                    names.GEN_AI_RESPONSE_FINISH_REASONS: reasons,
                }
            )
        _first_token.record((event.first_token_at - self.arrived) / 1e9, self._attributes)
        longest = max(end.output_tokens for end in event.choices)
        if longest > 1:
            seconds = (event.at - event.first_token_at) / 1e9
            _per_token.record(seconds / (longest - 1), self._attributes)

    def failed(self, error: BaseException) -> None:
        """The request has ended otherwise. Being cancelled is nobody's fault."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            kind = "cancelled"
        elif isinstance(error, HeadraceError):
            kind = error.reason or error.code.name
        else:
            kind = type(error).__name__
        self._attributes[names.ERROR_TYPE] = kind
        self._outcome["outcome"] = kind
        if self._span.is_recording():
            self._span.set_attribute(names.ERROR_TYPE, kind)
            if kind != "cancelled":
                self._span.set_status(trace.StatusCode.ERROR, kind)

    def end(self) -> None:
        """Closes the record. Called once, on every way out."""
        self._span.end()
        seconds = (time.perf_counter_ns() - self.arrived) / 1e9
        _duration.record(seconds, self._attributes)
        logger.info("completion ended", extra=self._outcome | {"seconds": round(seconds, 3)})

    def _part(self, name: str, start: int, end: int) -> None:
        if not self._span.is_recording():
            return
        parent = trace.set_span_in_context(self._span)
        span = _tracer.start_span(name, parent, start_time=start + self._offset)
        span.end(end + self._offset)
