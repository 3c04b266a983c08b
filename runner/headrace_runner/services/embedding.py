"""Serves EmbeddingService: one request becomes one of the engine, and its vectors one message."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any, TypeAlias

import grpc

from headrace.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from headrace.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from headrace_runner.embedding_state import EmbeddingRunner
from headrace_runner.engine.embedding.request import EmbeddingRequest, Finished, Started
from headrace_runner.services.calls import Call
from headrace_runner.services.embedding_inputs import inputs_of, wanted_of
from headrace_runner.services.embedding_messages import response
from headrace_runner.services.embedding_spans import EmbeddingSpan
from headrace_runner.services.workers import in_worker

Context: TypeAlias = "grpc.aio.ServicerContext[EmbedRequest, EmbedResponse]"


class EmbeddingServicer(EmbeddingServiceServicer):
    """Embeddings by one runner's engine."""

    def __init__(self, runner: EmbeddingRunner) -> None:
        self._runner = runner

    async def Embed(self, request: EmbedRequest, context: Context) -> EmbedResponse:
        """Gives a vector for each input. See the contract.

        Raises ModelMismatch, InvalidRequest, UnsupportedParameter, ContextLengthExceeded,
        InsufficientMemory, QueueFull, Draining.
        """
        arrived = time.perf_counter_ns()
        runner = self._runner
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        runner.check_target(request.model, metadata)
        request_id = secrets.token_hex(8)
        serial = runner.begin(request_id)
        span = EmbeddingSpan(request, request_id, runner.config, arrived)
        with Call(runner, serial, span):
            wanted = wanted_of(request, runner.traits)
            inputs = await in_worker(
                request, inputs_of, request, runner.texts, runner.traits, runner.context_length
            )
            await asyncio.shield(runner.loaded)
            span.accepted(inputs, wanted)
            tokens = EmbeddingRequest(request_id, tuple(each.tokens for each in inputs))
            finished = await self._compute(tokens, span)
            answer = await asyncio.to_thread(
                response, finished.vectors, inputs, wanted, runner.config.digest
            )
            span.finished(finished)
            return answer

    async def _compute(self, request: EmbeddingRequest, span: EmbeddingSpan) -> Finished:
        stream = self._runner.engine.submit(request)
        try:
            async for event in stream:
                match event:
                    case Started(at):
                        span.started(at)
                    case Finished():
                        return event
        finally:
            stream.close()
        raise AssertionError("the engine ended a request without its vectors")
