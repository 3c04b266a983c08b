"""Serves ScoreService by relaying to the model's runner."""

from __future__ import annotations

import grpc.aio

from headrace.telemetry.generation import request_attributes
from headrace.v1.score_pb2 import ScoreRequest, ScoreResponse
from headrace_server.measures import Output
from headrace_server.relay import Relay, Terms
from headrace_server.relay.record import Record
from headrace_server.scheduling.planner import Planner
from headrace_server.scheduling.prefixes import fingerprints
from headrace_server.services.adapters import with_adapter
from headrace_server.services.raw import Context, Raw, add_to, seconds, time_remaining, unary

SERVICE = "headrace.v1.ScoreService"


class ScoreServicer:
    """Scores by whichever runner has the model."""

    def __init__(self, planner: Planner, relay: Relay) -> None:
        self._planner = planner
        self._relay = relay

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server."""
        add_to(server, SERVICE, {"Score": unary(ScoreRequest, self.score)})

    async def score(self, request: Raw[ScoreRequest], context: Context) -> bytes:
        """Score continuations. A call whose runner dies is asked again: nothing of it was sent
        yet."""
        message = request.message
        model = await self._planner.model(message.model, "text")
        request, adapter = with_adapter(self._planner, model, request)
        terms = Terms(
            model,
            keep_alive=seconds(message.keep_alive) if message.HasField("keep_alive") else None,
            priority=message.priority,
            time_remaining=time_remaining(context),
            prefixes=fingerprints(message.input, adapter) if model.policy.replicas > 1 else (),
            adapter=adapter,
            # No prompt's bytes: what a prompt takes is not to be learnt from many continuations.
            attributes=request_attributes(message),
        )
        method = f"/{SERVICE}/Score"
        with self._planner.adapters.using(adapter):
            return await self._relay.unary(method, request.data, terms, _output, _close)


def _output(response: bytes) -> Output:
    return Output(prompt_tokens=ScoreResponse.FromString(response).usage.prompt_tokens)


def _close(response: bytes, record: Record, now: float) -> bytes:
    """With the time in queue and load."""
    message = ScoreResponse.FromString(response)
    record.add_waits(message.timings, now)
    return message.SerializeToString()
