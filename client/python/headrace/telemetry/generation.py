"""What telemetry says of a request to generate, to embed or to score."""

from __future__ import annotations

from typing import TypeAlias

from headrace.telemetry import names
from headrace.v1.completion_pb2 import StreamCompletionRequest
from headrace.v1.embedding_pb2 import EmbedRequest
from headrace.v1.image_pb2 import StreamImageRequest
from headrace.v1.score_pb2 import ScoreRequest

Request: TypeAlias = StreamCompletionRequest | StreamImageRequest | EmbedRequest | ScoreRequest


def request_attributes(request: Request) -> dict[str, str]:
    """Give the attributes by which requests are told apart in metrics: never a text of theirs."""
    return {
        names.GEN_AI_OPERATION_NAME: _operation(request),
        names.GEN_AI_PROVIDER_NAME: names.GEN_AI_PROVIDER,
        names.GEN_AI_REQUEST_MODEL: request.model,
    }


def _operation(request: Request) -> str:
    if isinstance(request, EmbedRequest):
        return names.OPERATION_EMBEDDINGS
    if isinstance(request, ScoreRequest):
        return names.OPERATION_SCORE
    if isinstance(request, StreamImageRequest):
        return names.OPERATION_GENERATE_CONTENT
    chat = request.WhichOneof("input") == "chat"
    return names.OPERATION_CHAT if chat else names.OPERATION_TEXT_COMPLETION
