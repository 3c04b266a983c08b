"""Serves TokenizeService by relaying to the model's runner."""

from __future__ import annotations

from typing import TypeVar

import grpc.aio

from headrace.v1.tokenize_pb2 import (
    CountTokensRequest,
    DetokenizeRequest,
    RenderChatRequest,
    TokenizeRequest,
)
from headrace_server.relay import Relay, Terms
from headrace_server.scheduling.planner import Planner
from headrace_server.services.raw import Context, Handler, Raw, add_to, time_remaining, unary

SERVICE = "headrace.v1.TokenizeService"

R = TypeVar("R", TokenizeRequest, DetokenizeRequest, RenderChatRequest, CountTokensRequest)


class TokenizeServicer:
    """Tokens by whichever runner has the model."""

    def __init__(self, planner: Planner, relay: Relay) -> None:
        self._planner = planner
        self._relay = relay

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server."""
        handlers = {
            "Tokenize": self._relayed("Tokenize", TokenizeRequest),
            "Detokenize": self._relayed("Detokenize", DetokenizeRequest),
            "RenderChat": self._relayed("RenderChat", RenderChatRequest),
            "CountTokens": self._relayed("CountTokens", CountTokensRequest),
        }
        add_to(server, SERVICE, handlers)

    def _relayed(self, method: str, kind: type[R]) -> Handler:
        async def relay(request: Raw[R], context: Context) -> bytes:
            model = await self._planner.model(request.message.model, "text")
            terms = Terms(model, time_remaining=time_remaining(context))
            return await self._relay.unary(f"/{SERVICE}/{method}", request.data, terms)

        return unary(kind, relay)
