"""The services that a runner's model is not for: every call is refused, and says what it is for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NoReturn, TypeAlias

import grpc

from headrace.errors import UnsupportedCapability
from headrace.v1.common_pb2 import ModelKind
from headrace.v1.completion_pb2 import StreamCompletionRequest, StreamCompletionResponse
from headrace.v1.completion_pb2_grpc import CompletionServiceServicer
from headrace.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from headrace.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from headrace.v1.image_pb2 import StreamImageRequest, StreamImageResponse
from headrace.v1.image_pb2_grpc import ImageServiceServicer
from headrace.v1.score_pb2 import ScoreRequest, ScoreResponse
from headrace.v1.score_pb2_grpc import ScoreServiceServicer
from headrace.v1.tokenize_pb2 import (
    CountTokensRequest,
    CountTokensResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    RenderChatRequest,
    RenderChatResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from headrace.v1.tokenize_pb2_grpc import TokenizeServiceServicer
from headrace_runner.state import AnyRunner

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Refusing:
    """A service that a runner's model is not for."""

    def __init__(self, runner: AnyRunner) -> None:
        self._runner = runner

    def _refuse(self, model: str, context: Context, asked: str) -> NoReturn:
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        self._runner.check_target(model, metadata)
        made_for = ModelKind.Name(self._runner.kind).removeprefix("MODEL_KIND_").lower()
        raise UnsupportedCapability(
            f"{model} is a model for {made_for}, not for {asked}", model=model, capability=asked
        )


class NoImages(Refusing, ImageServiceServicer):
    """A model of another kind draws no images."""

    async def StreamImage(
        self, request: StreamImageRequest, context: Context
    ) -> AsyncIterator[StreamImageResponse]:
        """Refuses."""
        self._refuse(request.model, context, "image")
        yield  # type: ignore[unreachable]  # makes this the generator that the method has to be


class NoCompletions(Refusing, CompletionServiceServicer):
    """A model of another kind writes no text."""

    async def StreamCompletion(
        self, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        """Refuses."""
        self._refuse(request.model, context, "text")
        yield  # type: ignore[unreachable]  # makes this the generator that the method has to be


class NoTokens(Refusing, TokenizeServiceServicer):
    """A model of another kind shows no tokens."""

    async def Tokenize(self, request: TokenizeRequest, context: Context) -> TokenizeResponse:
        """Refuses."""
        self._refuse(request.model, context, "text")

    async def Detokenize(self, request: DetokenizeRequest, context: Context) -> DetokenizeResponse:
        """Refuses."""
        self._refuse(request.model, context, "text")

    async def RenderChat(self, request: RenderChatRequest, context: Context) -> RenderChatResponse:
        """Refuses."""
        self._refuse(request.model, context, "text")

    async def CountTokens(
        self, request: CountTokensRequest, context: Context
    ) -> CountTokensResponse:
        """Refuses."""
        self._refuse(request.model, context, "text")


class NoScores(Refusing, ScoreServiceServicer):
    """A model of another kind scores no text."""

    async def Score(self, request: ScoreRequest, context: Context) -> ScoreResponse:
        """Refuses."""
        self._refuse(request.model, context, "text")


class NoEmbeddings(Refusing, EmbeddingServiceServicer):
    """A model of another kind makes no vectors."""

    async def Embed(self, request: EmbedRequest, context: Context) -> EmbedResponse:
        """Refuses."""
        self._refuse(request.model, context, "embedding")
