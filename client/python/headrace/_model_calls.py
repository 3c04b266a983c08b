"""The calls of ModelService as values, as `_calls` has the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from headrace import _convert, _convert_upkeep, types
from headrace._calls import Streaming, Unary
from headrace._folds import TransferFold, VerifyFold, WatchFold
from headrace._requests import invalid, put, put_all, put_keep_alive
from headrace.v1 import model_pb2

WatchCall = Streaming[model_pb2.WatchModelsResponse, types.ModelsEvent, NoReturn]

_QUANTIZATIONS: Mapping[types.Quantize, model_pb2.ImportQuantization.ValueType] = {
    4: model_pb2.IMPORT_QUANTIZATION_4_BITS,
    8: model_pb2.IMPORT_QUANTIZATION_8_BITS,
    "none": model_pb2.IMPORT_QUANTIZATION_NONE,
}


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
    base: str | None = None,
) -> Streaming[model_pb2.StreamImportModelResponse, types.TransferProgress, types.Model]:
    request = model_pb2.StreamImportModelRequest()
    put(request, "source_path", str(source) if isinstance(source, Path) else source)
    put(request, "model", model)
    put(request, "replace", replace)
    put(request, "unchecked", unchecked)
    put(request, "base", base)
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
    put_keep_alive(request, keep_alive)
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
