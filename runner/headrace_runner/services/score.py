"""Serves ScoreService: one request becomes one of the engine, and its scores one message."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from typing import Any, TypeAlias

import grpc

from headrace.rpc.options import MAX_MESSAGE_BYTES
from headrace.v1.common_pb2 import Usage
from headrace.v1.score_pb2 import ContinuationScore, ScoreRequest, ScoreResponse
from headrace.v1.score_pb2_grpc import ScoreServiceServicer
from headrace_runner.engine.text.request import Scored, ScoringRequest, Started
from headrace_runner.models.chat import invalid_field
from headrace_runner.models.tokenizer import Tokenizer
from headrace_runner.services.adapters import adapter_of
from headrace_runner.services.calls import Call
from headrace_runner.services.messages import timings, token_logprob
from headrace_runner.services.options import top_logprobs
from headrace_runner.services.score_inputs import Sequences, sequences_of
from headrace_runner.services.score_spans import ScoreSpan
from headrace_runner.services.workers import in_worker
from headrace_runner.text_state import TextRunner

Context: TypeAlias = "grpc.aio.ServicerContext[ScoreRequest, ScoreResponse]"


class ScoreServicer(ScoreServiceServicer):
    """Scores by one runner's engine."""

    def __init__(self, runner: TextRunner) -> None:
        self._runner = runner

    async def Score(self, request: ScoreRequest, context: Context) -> ScoreResponse:
        """Gives the log-probability of each continuation. See the contract.

        Raises ModelMismatch, InvalidRequest, UnsupportedCapability, ContextLengthExceeded,
        InsufficientMemory, QueueFull, Draining.
        """
        arrived = time.perf_counter_ns()
        runner = self._runner
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        runner.check_target(request.model, metadata)
        adapter = adapter_of(request.adapter, metadata, runner.config)
        request_id = secrets.token_hex(8)
        serial = runner.begin(request_id)
        span = ScoreSpan(request, request_id, runner.config, arrived)
        with Call(runner, serial, span):
            top = top_logprobs(request.logprobs, runner.tokenizer.vocab_size)
            sequences = await in_worker(
                request,
                sequences_of,
                request,
                runner.tokenizer,
                runner.template,
                runner.context_length,
                top or 0,
            )
            await asyncio.shield(runner.loaded)
            span.accepted(sequences)
            asked = ScoringRequest(
                id=request_id,
                prompt=sequences.prompt,
                continuations=sequences.continuations,
                skipped=sequences.skipped,
                top_logprobs=top or 0,
                priority=request.priority,
                adapter=adapter,
            )
            scored, cached = await self._compute(asked, span)
            answer = await asyncio.to_thread(
                response, scored, sequences, runner.tokenizer, tokens=top is not None
            )
            answer.usage.cached_tokens = cached
            answer.timings.CopyFrom(
                timings(arrived, scored.started_at, scored.prefilled_at, scored.at)
            )
            answer.digest = runner.config.digest
            span.finished(scored)
            return answer

    async def _compute(self, request: ScoringRequest, span: ScoreSpan) -> tuple[Scored, int]:
        """The scores, and how many of the prompt's tokens were cached."""
        stream = self._runner.engine.submit(request)
        cached = 0
        try:
            async for event in stream:
                match event:
                    case Started(at, cached):
                        span.started(at, cached)
                    case Scored():
                        return event, cached
        finally:
            stream.close()
        raise AssertionError("the engine ended a request without its scores")


def response(
    scored: Scored, sequences: Sequences, tokenizer: Tokenizer, *, tokens: bool
) -> ScoreResponse:
    """The scores as a message; with the log-probability of each of the `tokens`.

    Raises InvalidRequest for an answer that no client would receive.
    """
    answer = ScoreResponse(usage=Usage(prompt_tokens=sequences.prompt_tokens))
    for score, given, skipped in zip(
        scored.scores, sequences.continuations, sequences.skipped, strict=True
    ):
        ids = given[skipped:]
        pairs = zip(ids, score.logprobs, strict=True)
        found = ContinuationScore(
            logprob=math.fsum(each.token for each in score.logprobs),
            token_ids=ids,
            logprobs=[token_logprob(*pair, tokenizer) for pair in pairs] if tokens else (),
            is_greedy=score.greedy,
        )
        answer.scores.append(found)
    if (size := answer.ByteSize()) > MAX_MESSAGE_BYTES - 4096:
        raise invalid_field(
            "continuations", f"have an answer of {size} bytes, which is too long; ask in several"
        )
    return answer
