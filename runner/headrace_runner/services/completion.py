"""Serves CompletionService: one request becomes one stream of the engine.

Thin: the request is checked and translated here, and events become messages.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from headrace.errors import ContextLengthExceeded, FieldViolation, InvalidRequest
from headrace.rpc.access import charge
from headrace.v1.completion_pb2 import (
    CompletionProgress,
    CompletionStarted,
    StreamCompletionRequest,
    StreamCompletionResponse,
)
from headrace.v1.completion_pb2_grpc import CompletionServiceServicer
from headrace_runner.engine.stream import EventStream
from headrace_runner.engine.text.adapters import AdapterRef
from headrace_runner.engine.text.guide import Guidance
from headrace_runner.engine.text.request import (
    Delta,
    Event,
    Finished,
    GenerationRequest,
    Prefill,
    Started,
)
from headrace_runner.models.grammar import Grammars
from headrace_runner.services.adapters import adapter_of
from headrace_runner.services.calls import Call
from headrace_runner.services.constraint import guidance_of
from headrace_runner.services.messages import completed, delta
from headrace_runner.services.options import (
    resume_ids,
    sampling_params,
    stop_rules,
    top_logprobs,
)
from headrace_runner.services.prompt import Prompt, completion_prompt
from headrace_runner.services.spans import GenerationSpan
from headrace_runner.services.workers import in_worker
from headrace_runner.text_state import TextRunner

Context: TypeAlias = "grpc.aio.ServicerContext[StreamCompletionRequest, StreamCompletionResponse]"

_HEARTBEAT = 2.0
"""Seconds without anything to send after which a sign of life is sent."""


class CompletionServicer(CompletionServiceServicer):
    """Completions by one runner's engine."""

    def __init__(self, runner: TextRunner) -> None:
        self._runner = runner
        self._grammars = Grammars(runner.tokenizer)

    async def StreamCompletion(
        self, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        """Generates a completion. See the contract."""
        arrived = time.perf_counter_ns()
        runner = self._runner
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        runner.check_target(request.model, metadata)
        adapter = adapter_of(request.adapter, metadata, runner.config)
        request_id = request.request_id or secrets.token_hex(8)
        serial = runner.begin(request_id)
        span = GenerationSpan(request, request_id, runner.config, arrived)
        with Call(runner, serial, span):
            await asyncio.shield(runner.loaded)
            generation = await self._generation(request, request_id, adapter)
            span.accepted(generation)
            stream = runner.engine.submit(generation)
            try:
                async with aclosing(_messages(stream, generation, request, runner, span)) as sent:
                    async for message in sent:
                        yield message
            finally:
                stream.close()

    async def _generation(
        self, request: StreamCompletionRequest, request_id: str, adapter: AdapterRef | None
    ) -> GenerationRequest:
        runner = self._runner
        if request.n > runner.config.max_concurrency:
            rule = f"this runner computes {runner.config.max_concurrency} choices at once at most"
            raise InvalidRequest(violations=[FieldViolation("n", rule)])
        prompt, guidance = await in_worker(request, self._prepare, request)
        # A prompt may fill the context: the token drawn after it need not be fed back.
        length, limit = len(prompt.ids), runner.context_length
        if length > limit:
            raise ContextLengthExceeded(limit=limit, actual=length)
        room = limit - length + 1
        vocabulary = runner.tokenizer.vocab_size
        stops = stop_rules(request.stop, vocabulary)
        resume = resume_ids(request, vocabulary)
        longest = max(map(len, resume), default=0)
        if longest > room:
            raise ContextLengthExceeded(limit=limit, actual=length + longest)
        return GenerationRequest(
            id=request_id,
            prompt=prompt.ids,
            max_tokens=min(request.max_tokens, room) if request.HasField("max_tokens") else room,
            sampling=sampling_params(request.sampling, vocabulary),
            stop_strings=stops.strings,
            stop_token_ids=stops.token_ids,
            ignore_eos=request.stop.ignore_eos,
            include_stop=request.stop.include_stop,
            top_logprobs=top_logprobs(request.logprobs, vocabulary),
            priority=request.priority,
            choices=max(1, request.n),
            resume=resume,
            markup=prompt.markup,
            guidance=guidance,
            adapter=adapter,
        )

    def _prepare(self, request: StreamCompletionRequest) -> tuple[Prompt, Guidance | None]:
        """What takes time, done in a worker thread."""
        runner = self._runner
        prompt = completion_prompt(request, runner.tokenizer, runner.template, runner.markup)
        return prompt, guidance_of(request, prompt, runner.tokenizer, runner.markup, self._grammars)


async def _messages(
    stream: EventStream[Event],
    generation: GenerationRequest,
    request: StreamCompletionRequest,
    runner: TextRunner,
    span: GenerationSpan,
) -> AsyncGenerator[StreamCompletionResponse, None]:
    """The stream's events as messages, with a sign of life where there is nothing to tell."""
    cached = 0
    while True:
        if not await stream.wait(_HEARTBEAT):
            yield StreamCompletionResponse(
                progress=CompletionProgress(prompt_tokens_total=len(generation.prompt))
            )
            continue
        match await anext(stream):
            case Started(at, cached):
                span.started(at, cached)
                yield StreamCompletionResponse(
                    started=CompletionStarted(
                        id=generation.id,
                        model=request.model,
                        digest=runner.config.digest,
                        runner=runner.config.id,
                        prompt_tokens=len(generation.prompt),
                        cached_tokens=cached,
                        seed=generation.sampling.seed,
                        adapter=request.adapter,
                    )
                )
            case Delta() as event:
                span.advanced(event)
                yield StreamCompletionResponse(delta=delta(event, runner.tokenizer))
            case Prefill(done, total) as event:
                span.prefilled(event)
                if done < total - 1:
                    yield StreamCompletionResponse(
                        progress=CompletionProgress(
                            prompt_tokens_done=done, prompt_tokens_total=total
                        )
                    )
            case Finished() as event:
                span.finished(event)
                whole = completed(event, len(generation.prompt), cached, span.arrived)
                charge(whole.usage.prompt_tokens + whole.usage.output_tokens)
                yield StreamCompletionResponse(completed=whole)
                return
