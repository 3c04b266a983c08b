"""Serves EmbeddingService by relaying to the model's runner."""

from __future__ import annotations

import grpc.aio

from headrace.telemetry.generation import request_attributes
from headrace.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from headrace_server.measures import Output
from headrace_server.relay import Relay, Terms
from headrace_server.scheduling.planner import Planner
from headrace_server.services.raw import Context, Raw, add_to, seconds, time_remaining, unary

SERVICE = "headrace.v1.EmbeddingService"


class EmbeddingServicer:
    """Embeddings by whichever runner has the model."""

    def __init__(self, planner: Planner, relay: Relay) -> None:
        self._planner = planner
        self._relay = relay

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server."""
        add_to(server, SERVICE, {"Embed": unary(EmbedRequest, self.embed)})

    async def embed(self, request: Raw[EmbedRequest], context: Context) -> bytes:
        """Embed inputs. A call whose runner dies is asked again: nothing of it was sent yet."""
        message = request.message
        model = await self._planner.model(message.model, "embedding")
        terms = Terms(
            model,
            keep_alive=seconds(message.keep_alive) if message.HasField("keep_alive") else None,
            time_remaining=time_remaining(context),
            # No prompt's bytes: what tokens take is not to be learnt from vectors.
            attributes=request_attributes(message),
        )
        return await self._relay.unary(f"/{SERVICE}/Embed", request.data, terms, _output)


def _output(response: bytes) -> Output:
    return Output(prompt_tokens=EmbedResponse.FromString(response).usage.prompt_tokens)
