"""Serves CompletionService by relaying to the model's runner."""

from __future__ import annotations

from functools import partial

import grpc.aio

from headrace.telemetry.generation import request_attributes
from headrace.v1.completion_pb2 import StreamCompletionRequest
from headrace_server.relay import CompletionRecord, Relay, Terms, carried_tokens
from headrace_server.scheduling.planner import Planner
from headrace_server.scheduling.prefixes import fingerprints
from headrace_server.scheduling.timing import LONG_PROMPT
from headrace_server.services.adapters import with_adapter
from headrace_server.services.raw import Context, Raw, add_to, seconds, stream, time_remaining

SERVICE = "headrace.v1.CompletionService"


class CompletionServicer:
    """Completions by whichever runner has the model."""

    def __init__(self, planner: Planner, relay: Relay) -> None:
        self._planner = planner
        self._relay = relay

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server."""
        handler = stream(StreamCompletionRequest, self.stream_completion)
        add_to(server, SERVICE, {"StreamCompletion": handler})

    async def stream_completion(
        self, request: Raw[StreamCompletionRequest], context: Context
    ) -> None:
        """Generate a completion."""
        message = request.message
        model = await self._planner.model(message.model, "text")
        request, adapter = with_adapter(self._planner, model, request)
        choice = model.policy.replicas > 1
        terms = Terms(
            model,
            keep_alive=seconds(message.keep_alive) if message.HasField("keep_alive") else None,
            priority=message.priority,
            time_remaining=time_remaining(context),
            prefixes=(
                fingerprints(message, adapter) if choice or len(request.data) >= LONG_PROMPT else ()
            ),
            prompt_bytes=len(request.data),
            adapter=adapter,
            attributes=request_attributes(message),
        )
        with self._planner.adapters.using(adapter):
            carried, alone = carried_tokens(message), message.n <= 1
            record = partial(CompletionRecord, carried=carried, alone=alone)
            await self._relay.stream(record, request.data, terms, context.write)
