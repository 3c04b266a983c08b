"""Every call of the SDK as a value: its method, its request, and what becomes of the answer.

Both clients are made of these; neither sends nor awaits anything here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar

from google.protobuf.message import Message as ProtoMessage

from headrace import _convert, types
from headrace._folds import CompletionFold, Fold
from headrace._image_fold import ImageFold
from headrace._image_requests import image
from headrace._requests import (
    chat,
    completion,
    fill_input,
    put,
    put_all,
    put_keep_alive,
    put_sequences,
    score,
)
from headrace.types import (
    ChatMessage,
    CompletionOptions,
    Continuation,
    EmbeddingInput,
    ImageOptions,
    ScoreOptions,
)
from headrace.v1 import (
    completion_pb2,
    embedding_pb2,
    image_pb2,
    score_pb2,
    tokenize_pb2,
)

MessageT = TypeVar("MessageT", bound=ProtoMessage)
EventT = TypeVar("EventT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Unary(Generic[MessageT, ResultT]):
    """One request, one answer."""

    method: str
    request: ProtoMessage
    answer: type[MessageT]
    convert: Callable[[MessageT], ResultT]


@dataclass(frozen=True, slots=True)
class Streaming(Generic[MessageT, EventT, ResultT]):
    """One request, a stream of answers."""

    method: str
    request: ProtoMessage
    answer: type[MessageT]
    fold: Fold[MessageT, EventT, ResultT]


_MODEL_HEADER: Final = "headrace-model"


def routing(request: ProtoMessage) -> list[tuple[str, str]]:
    """Metadata by which a proxy can tell the calls for one model from others, without reading the
    request."""
    model = getattr(request, "model", "")
    # Another one is no model's name, and is told so by the server.
    plain = isinstance(model, str) and model.isascii() and model.isprintable()
    return [(_MODEL_HEADER, model)] if model and plain else []


_Response = completion_pb2.StreamCompletionResponse
CompletionCall = Streaming[_Response, types.CompletionEvent, types.Completion]
ImageCall = Streaming[image_pb2.StreamImageResponse, types.ImageEvent, types.Images]


def stream_completion(
    model: str,
    prompt: str | None,
    messages: Sequence[ChatMessage] | None,
    token_ids: Iterable[int] | None,
    options: CompletionOptions,
) -> CompletionCall:
    return Streaming(
        "/headrace.v1.CompletionService/StreamCompletion",
        completion(model, prompt, messages, token_ids, options),
        _Response,
        CompletionFold(),
    )


def stream_image(prompt: str, model: str, options: ImageOptions) -> ImageCall:
    request = image(prompt, model, options)
    return Streaming(
        "/headrace.v1.ImageService/StreamImage",
        request,
        image_pb2.StreamImageResponse,
        ImageFold(request.count if request.HasField("count") else 1),
    )


def embed(
    model: str,
    inputs: Iterable[EmbeddingInput],
    dimensions: int | None,
    normalize: bool | None,
    truncate: bool | None,
    keep_alive: float | timedelta | None,
) -> Unary[embedding_pb2.EmbedResponse, types.Embeddings]:
    request = embedding_pb2.EmbedRequest()
    put(request, "model", model)
    put_sequences(request.inputs, inputs, path="inputs")
    put(request, "dimensions", dimensions)
    put(request, "normalize", normalize)
    put(request, "truncate", truncate)
    put_keep_alive(request, keep_alive)
    return Unary(
        "/headrace.v1.EmbeddingService/Embed",
        request,
        embedding_pb2.EmbedResponse,
        _convert.embeddings,
    )


def score_continuations(
    model: str,
    prompt: str | None,
    continuations: Iterable[Continuation],
    messages: Sequence[ChatMessage] | None,
    token_ids: Iterable[int] | None,
    options: ScoreOptions,
) -> Unary[score_pb2.ScoreResponse, types.Scores]:
    return Unary(
        "/headrace.v1.ScoreService/Score",
        score(model, prompt, continuations, messages, token_ids, options),
        score_pb2.ScoreResponse,
        _convert.scores,
    )


def tokenize(
    model: str, text: str, add_special: bool | None, pieces: bool | None
) -> Unary[tokenize_pb2.TokenizeResponse, types.Tokens]:
    request = tokenize_pb2.TokenizeRequest()
    put(request, "model", model)
    put(request, "text", text)
    put(request, "add_special", add_special)
    put(request, "pieces", pieces)
    return Unary(
        "/headrace.v1.TokenizeService/Tokenize",
        request,
        tokenize_pb2.TokenizeResponse,
        _convert.tokens,
    )


def detokenize(
    model: str, token_ids: Iterable[int], skip_special: bool | None
) -> Unary[tokenize_pb2.DetokenizeResponse, types.Detokenized]:
    request = tokenize_pb2.DetokenizeRequest()
    put(request, "model", model)
    put_all(request, "token_ids", token_ids, path="token_ids")
    put(request, "skip_special", skip_special)
    return Unary(
        "/headrace.v1.TokenizeService/Detokenize",
        request,
        tokenize_pb2.DetokenizeResponse,
        _convert.detokenized,
    )


def render_chat(
    model: str,
    messages: Sequence[ChatMessage],
    template_options: Mapping[str, Any] | None,
    add_generation_prompt: bool | None,
) -> Unary[tokenize_pb2.RenderChatResponse, types.RenderedChat]:
    request = tokenize_pb2.RenderChatRequest(
        chat=chat(messages, template_options, add_generation_prompt)
    )
    put(request, "model", model)
    return Unary(
        "/headrace.v1.TokenizeService/RenderChat",
        request,
        tokenize_pb2.RenderChatResponse,
        _convert.rendered_chat,
    )


def count_tokens(
    model: str,
    prompt: str | None,
    messages: Sequence[ChatMessage] | None,
    token_ids: Iterable[int] | None,
) -> Unary[tokenize_pb2.CountTokensResponse, types.TokenCount]:
    request = tokenize_pb2.CountTokensRequest()
    put(request, "model", model)
    fill_input(request.input, prompt, messages, token_ids)
    return Unary(
        "/headrace.v1.TokenizeService/CountTokens",
        request,
        tokenize_pb2.CountTokensResponse,
        _convert.token_count,
    )


def health(service: str) -> Unary[Any, bool]:
    # Imported here: the bare client pays for it only when it asks.
    from grpc_health.v1 import health_pb2

    request = health_pb2.HealthCheckRequest()
    put(request, "service", service)
    return Unary(
        "/grpc.health.v1.Health/Check",
        request,
        health_pb2.HealthCheckResponse,
        lambda answer: bool(answer.status == health_pb2.HealthCheckResponse.SERVING),
    )
