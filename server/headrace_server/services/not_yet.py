"""The services of the contract that are not served yet: they still say what is wrong first."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from headrace.errors import NotImplementedYet
from headrace.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from headrace.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from headrace_server.scheduling.planner import Planner

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class EmbeddingServicer(EmbeddingServiceServicer):
    """Refuses: no model embeds yet."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner

    async def Embed(self, request: EmbedRequest, context: Context) -> EmbedResponse:
        """Raises ModelNotFound, UnsupportedCapability or NotImplementedYet."""
        await self._planner.model(request.model, "embedding")
        raise NotImplementedYet(
            "this version has no embeddings yet", method="headrace.v1.EmbeddingService/Embed"
        )
