"""Every call of the SDK as a value: its method, its request, and what becomes of the answer.

Both clients are made of these; neither sends nor awaits anything here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, TypeVar

from google.protobuf.message import Message as ProtoMessage

from headrace import _convert, _convert_upkeep, types
from headrace._folds import CompletionFold, Fold, TransferFold, VerifyFold, WatchFold
from headrace._image_fold import ImageFold
from headrace._image_requests import image
from headrace._requests import (
    chat,
    completion,
    fill_input,
    invalid,
    put,
    put_all,
    put_duration,
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
    model_pb2,
    score_pb2,
    tokenize_pb2,
)

_QUANTIZATIONS: Mapping[types.Quantize, model_pb2.ImportQuantization.ValueType] = {
    4: model_pb2.IMPORT_QUANTIZATION_4_BITS,
    8: model_pb2.IMPORT_QUANTIZATION_8_BITS,
    "none": model_pb2.IMPORT_QUANTIZATION_NONE,
}
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
WatchCall = Streaming[model_pb2.WatchModelsResponse, types.ModelsEvent, NoReturn]


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
    if isinstance(inputs, str | bytes) or not isinstance(inputs, Iterable):
        raise invalid("inputs", "must be a sequence of texts: put a single one in a list")
    request = embedding_pb2.EmbedRequest()
    put(request, "model", model)
    for index, given in enumerate(inputs):
        path, target = f"inputs[{index}]", request.inputs.add()
        if isinstance(given, str):
            put(target, "text", given, path=f"{path}.text")
        else:
            # Also where there are none: it is tokens all the same.
            target.token_ids.SetInParent()
            put_all(target.token_ids, "ids", given, path=f"{path}.token_ids.ids")
    put(request, "dimensions", dimensions)
    put(request, "normalize", normalize)
    put(request, "truncate", truncate)
    if keep_alive is not None:
        put_duration(request.keep_alive, keep_alive, path="keep_alive")
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


def list_models(
    loaded: bool | None,
) -> Unary[model_pb2.ListModelsResponse, tuple[types.Model, ...]]:
    request = model_pb2.ListModelsRequest()
    put(request, "loaded", loaded)
    return Unary(
        "/headrace.v1.ModelService/ListModels",
        request,
        model_pb2.ListModelsResponse,
        lambda answer: tuple(_convert.model(model) for model in answer.models),
    )


def list_runners() -> Unary[model_pb2.ListRunnersResponse, types.RunnersSnapshot]:
    return Unary(
        "/headrace.v1.ModelService/ListRunners",
        model_pb2.ListRunnersRequest(),
        model_pb2.ListRunnersResponse,
        _convert.runners_snapshot,
    )


def get_model(model: str) -> Unary[model_pb2.GetModelResponse, types.Model]:
    request = model_pb2.GetModelRequest()
    put(request, "model", model)
    return Unary(
        "/headrace.v1.ModelService/GetModel",
        request,
        model_pb2.GetModelResponse,
        lambda answer: _convert.model(answer.model),
    )


def pull_model(
    model: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    files: Iterable[str] = (),
    sha256: str | None = None,
    allow_http: bool | None = None,
) -> Streaming[model_pb2.StreamPullModelResponse, types.TransferProgress, types.Model]:
    request = model_pb2.StreamPullModelRequest()
    put(request, "model", model)
    put(request, "name", name)
    put(request, "revision", revision)
    put_all(request, "files", [files] if isinstance(files, str) else files, path="files")
    put(request, "sha256", sha256)
    put(request, "allow_http", allow_http)
    return Streaming(
        "/headrace.v1.ModelService/StreamPullModel",
        request,
        model_pb2.StreamPullModelResponse,
        TransferFold(),
    )


def import_model(
    source: str | Path,
    model: str,
    replace: bool | None,
    quantize: types.Quantize | None = None,
    unchecked: bool | None = None,
) -> Streaming[model_pb2.StreamImportModelResponse, types.TransferProgress, types.Model]:
    request = model_pb2.StreamImportModelRequest()
    put(request, "source_path", str(source) if isinstance(source, Path) else source)
    put(request, "model", model)
    put(request, "replace", replace)
    put(request, "unchecked", unchecked)
    if quantize is not None:
        if quantize not in _QUANTIZATIONS:
            raise invalid("quantize", "must be 4, 8 or 'none'")
        request.quantization = _QUANTIZATIONS[quantize]
    return Streaming(
        "/headrace.v1.ModelService/StreamImportModel",
        request,
        model_pb2.StreamImportModelResponse,
        TransferFold(),
    )


def copy_model(source: str, destination: str) -> Unary[model_pb2.CopyModelResponse, types.Model]:
    request = model_pb2.CopyModelRequest()
    put(request, "source", source)
    put(request, "destination", destination)
    return Unary(
        "/headrace.v1.ModelService/CopyModel",
        request,
        model_pb2.CopyModelResponse,
        lambda answer: _convert.model(answer.model),
    )


def delete_model(model: str) -> Unary[model_pb2.DeleteModelResponse, int]:
    request = model_pb2.DeleteModelRequest()
    put(request, "model", model)
    return Unary(
        "/headrace.v1.ModelService/DeleteModel",
        request,
        model_pb2.DeleteModelResponse,
        lambda answer: answer.freed_bytes,
    )


def verify_models(
    models: Iterable[str],
) -> Streaming[model_pb2.StreamVerifyModelsResponse, types.VerifyEvent, types.Verification]:
    if isinstance(models, str):
        raise invalid("models", "must be a sequence of names: put a single one in a list")
    request = model_pb2.StreamVerifyModelsRequest()
    put_all(request, "models", models, path="models")
    return Streaming(
        "/headrace.v1.ModelService/StreamVerifyModels",
        request,
        model_pb2.StreamVerifyModelsResponse,
        VerifyFold(),
    )


def collect_garbage(
    dry_run: bool | None,
) -> Unary[model_pb2.CollectGarbageResponse, types.Garbage]:
    request = model_pb2.CollectGarbageRequest()
    put(request, "dry_run", dry_run)
    return Unary(
        "/headrace.v1.ModelService/CollectGarbage",
        request,
        model_pb2.CollectGarbageResponse,
        lambda answer: _convert_upkeep.garbage(answer.garbage),
    )


def load_model(
    model: str, keep_alive: float | timedelta | None
) -> Unary[model_pb2.LoadModelResponse, types.Loaded]:
    request = model_pb2.LoadModelRequest()
    put(request, "model", model)
    if keep_alive is not None:
        put_duration(request.keep_alive, keep_alive, path="keep_alive")
    return Unary(
        "/headrace.v1.ModelService/LoadModel",
        request,
        model_pb2.LoadModelResponse,
        _convert.loaded,
    )


def unload_model(model: str) -> Unary[model_pb2.UnloadModelResponse, int]:
    request = model_pb2.UnloadModelRequest()
    put(request, "model", model)
    return Unary(
        "/headrace.v1.ModelService/UnloadModel",
        request,
        model_pb2.UnloadModelResponse,
        lambda answer: answer.stopped,
    )


def watch_models(resume_token: str | None) -> WatchCall:
    request = model_pb2.WatchModelsRequest()
    put(request, "resume_token", resume_token)
    return Streaming(
        "/headrace.v1.ModelService/WatchModels",
        request,
        model_pb2.WatchModelsResponse,
        WatchFold(),
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
