"""The engine's events as messages of the contract. Pure."""

from __future__ import annotations

import time

from google.protobuf.duration_pb2 import Duration

from headrace.v1.common_pb2 import Timings, Usage
from headrace.v1.completion_pb2 import (
    ChoiceResult,
    CompletionCompleted,
    CompletionDelta,
    FinishReason,
    TokenLogprob,
    ToolCallPart,
)
from headrace_runner.engine.text.logprobs import Logprobs
from headrace_runner.engine.text.request import ChoiceEnd, Delta, Finish, Finished
from headrace_runner.models.tokenizer import Tokenizer

_REASONS = {
    Finish.END_OF_TEXT: FinishReason.FINISH_REASON_END_OF_TEXT,
    Finish.STOP: FinishReason.FINISH_REASON_STOP,
    Finish.LENGTH: FinishReason.FINISH_REASON_LENGTH,
    Finish.TOOL_CALLS: FinishReason.FINISH_REASON_TOOL_CALLS,
}


def delta(event: Delta, tokenizer: Tokenizer) -> CompletionDelta:
    """More output of one choice."""
    return CompletionDelta(
        choice=event.choice,
        text=event.text,
        reasoning=event.reasoning,
        tool_calls=[
            ToolCallPart(
                index=part.index, id=part.id, name=part.name, arguments_json=part.arguments
            )
            for part in event.tool_calls
        ],
        token_ids=event.token_ids,
        # Absent unless asked for: most deltas have none.
        logprobs=[
            token_logprob(token, logprobs, tokenizer)
            for token, logprobs in zip(event.token_ids, event.logprobs, strict=False)
        ],
        output_tokens=event.output_tokens,
    )


def completed(
    event: Finished, prompt_tokens: int, cached_tokens: int, arrived: int
) -> CompletionCompleted:
    """The end of a stream that arrived at `arrived`, a `perf_counter_ns`."""
    return CompletionCompleted(
        choices=[_choice(index, end) for index, end in enumerate(event.choices)],
        usage=Usage(
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            output_tokens=sum(end.output_tokens for end in event.choices),
        ),
        timings=timings(arrived, event.started_at, event.first_token_at, event.at),
    )


def timings(arrived: int, started_at: int, prefilled_at: int, ended_at: int) -> Timings:
    """Where the time went until now, between these times of `perf_counter_ns`."""
    return Timings(
        queue=_span(arrived, started_at),
        load=Duration(),
        prefill=_span(started_at, prefilled_at),
        decode=_span(prefilled_at, ended_at),
        total=_span(arrived, time.perf_counter_ns()),
    )


def _choice(index: int, end: ChoiceEnd) -> ChoiceResult:
    choice = ChoiceResult(
        index=index, finish_reason=_REASONS[end.reason], output_tokens=end.output_tokens
    )
    if isinstance(end.matched, str):
        choice.stop_string = end.matched
    elif end.matched is not None:
        choice.stop_token_id = end.matched
    return choice


def token_logprob(token: int, logprobs: Logprobs, tokenizer: Tokenizer) -> TokenLogprob:
    """A token with its log-probability and those of the likeliest in its place."""
    return TokenLogprob(
        token_id=token,
        logprob=logprobs.token,
        piece=tokenizer.token_bytes(token),
        top=[
            TokenLogprob(token_id=other, logprob=value, piece=tokenizer.token_bytes(other))
            for other, value in logprobs.top
        ],
    )


def _span(start: int, end: int) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(max(0, end - start))
    return duration
