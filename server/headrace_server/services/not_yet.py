"""The services of the contract that are not served yet: they still say what is wrong first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from headrace.errors import NotImplementedYet
from headrace.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from headrace.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from headrace.v1.image_pb2 import StreamImageRequest, StreamImageResponse
from headrace.v1.image_pb2_grpc import ImageServiceServicer
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


class ImageServicer(ImageServiceServicer):
    """Refuses: no model draws yet."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner

    async def StreamImage(
        self, request: StreamImageRequest, context: Context
    ) -> AsyncIterator[StreamImageResponse]:
        """Raises ModelNotFound, UnsupportedCapability or NotImplementedYet."""
        await self._planner.model(request.model, "image")
        raise NotImplementedYet(
            "this version has no image generation yet",
            method="headrace.v1.ImageService/StreamImage",
        )
        yield  # type: ignore[unreachable]  # makes this the generator that the method has to be
