"""The services of the contract that this version of the runner does not serve yet."""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc

from headrace.errors import NotImplementedYet
from headrace.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from headrace.v1.embedding_pb2_grpc import EmbeddingServiceServicer

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class EmbeddingServicer(EmbeddingServiceServicer):
    """Answers UNIMPLEMENTED."""

    async def Embed(self, request: EmbedRequest, context: Context) -> EmbedResponse:
        """Says that there are no embeddings yet."""
        raise NotImplementedYet(
            "this version has no embeddings yet", method="headrace.v1.EmbeddingService/Embed"
        )
