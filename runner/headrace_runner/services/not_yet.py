"""The services of the contract that this version of the runner does not serve yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc

from headrace.errors import NotImplementedYet
from headrace.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from headrace.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from headrace.v1.image_pb2 import StreamImageRequest, StreamImageResponse
from headrace.v1.image_pb2_grpc import ImageServiceServicer

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class EmbeddingServicer(EmbeddingServiceServicer):
    """Answers UNIMPLEMENTED."""

    async def Embed(self, request: EmbedRequest, context: Context) -> EmbedResponse:
        """Says that there are no embeddings yet."""
        raise NotImplementedYet(
            "this version has no embeddings yet", method="headrace.v1.EmbeddingService/Embed"
        )


class ImageServicer(ImageServiceServicer):
    """Answers UNIMPLEMENTED."""

    async def StreamImage(
        self, request: StreamImageRequest, context: Context
    ) -> AsyncIterator[StreamImageResponse]:
        """Says that there are no images yet."""
        raise NotImplementedYet(
            "this version has no image generation yet",
            method="headrace.v1.ImageService/StreamImage",
        )
        yield  # type: ignore[unreachable]  # makes this the generator that the method has to be
