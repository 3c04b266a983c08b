"""A controller that says what a test tells it to: real gRPC, scripted answers, no models."""

from __future__ import annotations

import hashlib
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from headrace.errors import Draining, HeadraceError, ModelNotFound, to_status, trailing_metadata
from headrace.v1 import (
    common_pb2,
    completion_pb2,
    completion_pb2_grpc,
    embedding_pb2,
    embedding_pb2_grpc,
    image_pb2,
    image_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    runner_pb2,
    score_pb2,
    score_pb2_grpc,
    tokenize_pb2,
    tokenize_pb2_grpc,
)

WAIT = object()
"""In a script: say nothing until the call is cancelled or the server stops."""


def response(**event: Any) -> completion_pb2.StreamCompletionResponse:
    return completion_pb2.StreamCompletionResponse(**event)


def started(**fields: Any) -> completion_pb2.StreamCompletionResponse:
    values: dict[str, Any] = {
        "id": "r1",
        "model": "m:1",
        "digest": "sha256:0",
        "runner": "a",
        "seed": 7,
    } | fields
    return response(started=completion_pb2.CompletionStarted(prompt_tokens=3, **values))


def delta(text: str, *token_ids: int, **fields: Any) -> completion_pb2.StreamCompletionResponse:
    return response(delta=completion_pb2.CompletionDelta(text=text, token_ids=token_ids, **fields))


def completed(output_tokens: int = 2, **choice: Any) -> completion_pb2.StreamCompletionResponse:
    choice = {"finish_reason": completion_pb2.FINISH_REASON_END_OF_TEXT} | choice
    message = completion_pb2.CompletionCompleted(
        choices=[completion_pb2.ChoiceResult(**choice)],
        usage=common_pb2.Usage(prompt_tokens=3, cached_tokens=1, output_tokens=output_tokens),
        resumed=1,
    )
    message.timings.decode.FromMilliseconds(500)
    message.timings.total.FromMilliseconds(1500)
    return response(completed=message)


ANSWER = (started(), delta("Hel", 1), delta("lo", 2), completed())


def model(name: str = "m:1", **fields: Any) -> model_pb2.Model:
    values: dict[str, Any] = {
        "kind": common_pb2.MODEL_KIND_TEXT,
        "format": "mlx",
        "architecture": "llama",
        "digest": "sha256:" + "0" * 64,
        "parameters": 134_515_008,
        "size_bytes": 98_362_432,
        "quantization": "Q4_1",
        "context_length": 2048,
        "chat_template": True,
    }
    message = model_pb2.Model(name=name, **(values | fields))
    message.created_at.FromSeconds(1_700_000_000)
    return message


def image_response(**event: Any) -> image_pb2.StreamImageResponse:
    return image_pb2.StreamImageResponse(**event)


def image_started(**fields: Any) -> image_pb2.StreamImageResponse:
    values: dict[str, Any] = {
        "id": "r1",
        "model": "emoji:64",
        "digest": "sha256:0",
        "runner": "a",
        "seed": 7,
        "width": 2,
        "height": 2,
        "steps": 8,
    }
    return image_response(started=image_pb2.ImageStarted(**(values | fields)))


def image_progress(phase: str, **fields: Any) -> image_pb2.StreamImageResponse:
    number = image_pb2.ImagePhase.Value(f"IMAGE_PHASE_{phase.upper()}")
    told = image_pb2.ImageProgress(phase=number, **fields)
    told.remaining.FromMilliseconds(1500)
    return image_response(progress=told)


def image_files(
    *files: bytes, piece: int = 64, media_type: str = "image/png"
) -> list[image_pb2.StreamImageResponse]:
    """Files in pieces, and the end."""
    chunks = [
        image_response(chunk=image_pb2.ImageChunk(index=i, offset=at, data=file[at : at + piece]))
        for i, file in enumerate(files)
        for at in range(0, len(file), piece)
    ]
    end = image_pb2.ImageCompleted(resumed=1)
    end.timings.decode.FromMilliseconds(500)
    end.timings.total.FromMilliseconds(1500)
    for index, file in enumerate(files):
        digest = hashlib.sha256(file).hexdigest()
        result = {"index": index, "sha256": digest, "seed": 7 + index, "width": 2, "height": 2}
        end.images.add(**result, media_type=media_type, size_bytes=len(file))
    return [*chunks, image_response(completed=end)]


def png(*pixels: tuple[int, int, int], width: int = 2) -> bytes:
    """A picture of these pixels, row by row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    rows = [pixels[at : at + width] for at in range(0, len(pixels), width)]
    data = b"".join(b"\0" + bytes(value for pixel in row for value in pixel) for row in rows)
    head = struct.pack(">IIBBBBB", width, len(rows), 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


ROSE = png((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))
DRAWN = (
    image_progress("queued", queue_position=2),
    image_progress("loading", load_fraction=0.5),
    image_started(),
    image_progress("encoding", step=1, total=1),
    image_progress("denoising", step=4, total=8),
    image_response(
        preview=image_pb2.ImagePreview(index=0, step=4, media_type="image/png", data=ROSE)
    ),
    image_progress("denoising", step=8, total=8),
    image_progress("decoding"),
    *image_files(ROSE),
)


def watched(**event: Any) -> model_pb2.WatchModelsResponse:
    return model_pb2.WatchModelsResponse(**event)


def changes() -> list[object]:
    """A model that is loaded, its runner's death, a second model's end, and the controller's."""
    dying = runner(state=common_pb2.RUNNER_STATE_DEAD, reason="SIGNAL")
    checkpoint = model_pb2.WatchCheckpoint
    snapshot = model_pb2.ModelsSnapshot(models=[model("m:1", runners=[runner()]), model("n:1")])
    return [
        watched(snapshot=snapshot),
        watched(checkpoint=checkpoint(resume_token="t.1")),
        watched(changed=model("m:1", runners=[dying])),
        watched(),  # of a kind that a later version has
        watched(changed=model("m:1")),
        watched(deleted="n:1"),
        watched(checkpoint=checkpoint(resume_token="t.4")),
        Draining(1.0),
    ]


def garbage() -> model_pb2.Garbage:
    """A download and two files that are there twice."""
    download, duplicate = model_pb2.GARBAGE_KIND_DOWNLOAD, model_pb2.GARBAGE_KIND_DUPLICATE
    items = [
        model_pb2.GarbageItem(kind=download, name="abc", size_bytes=1000),
        model_pb2.GarbageItem(kind=duplicate, name="m:1 a.txt", size_bytes=500),
        model_pb2.GarbageItem(kind=duplicate, name="m:1 b.txt", size_bytes=500),
    ]
    return model_pb2.Garbage(items=items, freed_bytes=2000, downloads_in_use=True)


def verification() -> list[object]:
    """Of a model that is whole, and one that is not."""
    response = model_pb2.StreamVerifyModelsResponse
    damaged = model_pb2.DamagedFile(
        file="config.json", damage=model_pb2.FILE_DAMAGE_MISSING, description="is missing"
    )
    broken = model_pb2.VerifiedModel(
        model="n:1", digest="sha256:1", size_bytes=50, damaged=[damaged], remedy="get it again"
    )
    whole = model_pb2.VerifiedModel(model="m:1", digest="sha256:0", size_bytes=98_362_432)
    return [
        response(progress=model_pb2.VerifyProgress(model="m:1", done_bytes=0, total_bytes=2)),
        response(verified=whole),
        response(progress=model_pb2.VerifyProgress(model="n:1", done_bytes=2, total_bytes=2)),
        response(verified=broken),
        response(),  # of a kind that a later version has
        response(completed=model_pb2.VerifyCompleted(garbage=garbage())),
    ]


def runner(**fields: Any) -> common_pb2.RunnerStatus:
    values: dict[str, Any] = {"id": "a", "model": "m:1", "pid": 42, "memory_bytes": 1 << 30}
    values["state"] = common_pb2.RUNNER_STATE_SERVING
    message = common_pb2.RunnerStatus(**(values | fields))
    message.expires_in.FromSeconds(300)
    return message


def runners(output_tokens: int = 0, waiting: int = 0) -> model_pb2.ListRunnersResponse:
    """One that serves and has told so many tokens, one that loads, and who waits for a third."""
    report = runner_pb2.Runner(id="a", weights="float32")
    report.load.MergeFrom(
        runner_pb2.RunnerLoad(
            running=1,
            waiting=2,
            prompt_tokens_total=100,
            cached_tokens_total=40,
            output_tokens_total=output_tokens,
        )
    )
    report.memory.MergeFrom(
        runner_pb2.RunnerMemory(kv_reserved_bytes=25, kv_limit_bytes=100, resident_bytes=1 << 29)
    )
    report.uptime.FromSeconds(60)
    loading = runner(id="b", model="n:1", state=common_pb2.RUNNER_STATE_LOADING, load_fraction=0.5)
    listed = model_pb2.ListedRunner
    return model_pb2.ListRunnersResponse(
        runners=[
            listed(status=runner(active_requests=3), report=report),
            listed(status=loading),
        ],
        queues=[model_pb2.ModelQueue(model="o:1", waiting=waiting)] if waiting else [],
        memory_budget_bytes=4 << 30,
    )


@dataclass
class Fake:
    """What the controller answers, and what it was asked."""

    target: str
    completion: Sequence[object] = ANSWER
    images: Sequence[object] = DRAWN
    transfer: Sequence[object] = ()
    watch: Sequence[object] = ()
    verification: Sequence[object] = ()
    garbage: model_pb2.Garbage = field(default_factory=garbage)
    runners: list[model_pb2.ListRunnersResponse] = field(default_factory=lambda: [runners()])
    """The answers to ListRunners in turn, of which the last stays."""
    models: dict[str, model_pb2.Model] = field(default_factory=dict)
    failure: HeadraceError | None = None
    """Raised by every unary method, if set."""

    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    remaining: list[float | None] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def note(self, request: Message, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.remaining.append(context.time_remaining())

    def unary(self, request: Message, context: grpc.ServicerContext) -> None:
        self.note(request, context)
        if self.failure:
            fail(context, self.failure)

    def play(
        self, script: Sequence[object], request: Message, context: grpc.ServicerContext
    ) -> Iterator[Any]:
        self.note(request, context)
        context.add_callback(self.cancelled.set)
        for step in script:
            if isinstance(step, HeadraceError):
                fail(context, step)
            elif step is WAIT:
                self.cancelled.wait(30)
            else:
                yield step

    def find(self, name: str, context: grpc.ServicerContext) -> model_pb2.Model:
        if name not in self.models:
            fail(context, ModelNotFound(name, nearest=self.models))
        return self.models[name]


def fail(context: grpc.ServicerContext, error: HeadraceError) -> NoReturn:
    status = to_status(error)
    context.set_trailing_metadata(trailing_metadata(error, status))
    context.abort(error.code, status.message)
    raise AssertionError("unreachable")


class Completions(completion_pb2_grpc.CompletionServiceServicer):
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def StreamCompletion(self, request: Any, context: Any) -> Any:
        return self.fake.play(self.fake.completion, request, context)


class Images(image_pb2_grpc.ImageServiceServicer):
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def StreamImage(self, request: Any, context: Any) -> Any:
        return self.fake.play(self.fake.images, request, context)


class Embeddings(embedding_pb2_grpc.EmbeddingServiceServicer):
    """Vectors of two numbers: each text's length, and 1."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def Embed(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        lengths = [len(given.text) or len(given.token_ids.ids) for given in request.inputs]
        return embedding_pb2.EmbedResponse(
            embeddings=[
                embedding_pb2.Embedding(values=[n, 1], prompt_tokens=n, truncated=n > 9)
                for n in lengths
            ],
            dimensions=2,
            normalized=not request.HasField("normalize") or request.normalize,
            usage=common_pb2.Usage(prompt_tokens=sum(lengths)),
            digest="sha256:0",
        )


class Scores(score_pb2_grpc.ScoreServiceServicer):
    """A continuation's tokens are its bytes, each as likely as the next one; short ones are what
    would be written."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def Score(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        ids = [list(c.text.encode()) or list(c.token_ids.ids) for c in request.continuations]
        return score_pb2.ScoreResponse(
            scores=[
                score_pb2.ContinuationScore(
                    logprob=-0.5 * len(each),
                    token_ids=each,
                    logprobs=[
                        completion_pb2.TokenLogprob(token_id=i, logprob=-0.5, piece=bytes([i]))
                        for i in each
                        if request.logprobs.enabled
                    ],
                    is_greedy=len(each) < 3,
                )
                for each in ids
            ],
            usage=common_pb2.Usage(prompt_tokens=4 + sum(map(len, ids)), cached_tokens=2),
            digest="sha256:0",
        )


class Tokenizers(tokenize_pb2_grpc.TokenizeServiceServicer):
    """One token a byte."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def Tokenize(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        data = request.text.encode()
        return tokenize_pb2.TokenizeResponse(
            token_ids=data,
            pieces=[
                tokenize_pb2.TokenPiece(token_id=b, piece=bytes([b]), start=i, end=i + 1)
                for i, b in enumerate(data)
            ]
            if request.pieces
            else [],
        )

    def Detokenize(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        data = bytes(request.token_ids)
        return tokenize_pb2.DetokenizeResponse(data=data, text=data.decode(errors="replace"))

    def RenderChat(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        prompt = "".join(message.content for message in request.chat.messages)
        return tokenize_pb2.RenderChatResponse(prompt=prompt, token_ids=prompt.encode())

    def CountTokens(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        count = len(request.input.prompt)
        return tokenize_pb2.CountTokensResponse(token_count=count, context_length=8, fits=count < 8)


class Models(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, fake: Fake) -> None:
        self.fake = fake

    def ListModels(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        models = self.fake.models.values()
        shown = [m for m in models if m.runners or not request.loaded]
        return model_pb2.ListModelsResponse(models=shown)

    def ListRunners(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        return self.fake.runners.pop(0) if len(self.fake.runners) > 1 else self.fake.runners[0]

    def GetModel(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        return model_pb2.GetModelResponse(model=self.fake.find(request.model, context))

    def StreamPullModel(self, request: Any, context: Any) -> Any:
        return self.fake.play(self.fake.transfer, request, context)

    def StreamImportModel(self, request: Any, context: Any) -> Any:
        return self.fake.play(self.fake.transfer, request, context)

    def StreamVerifyModels(self, request: Any, context: Any) -> Any:
        return self.fake.play(self.fake.verification, request, context)

    def CollectGarbage(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        return model_pb2.CollectGarbageResponse(garbage=self.fake.garbage)

    def CopyModel(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        self.fake.find(request.source, context)
        return model_pb2.CopyModelResponse(model=model(request.destination))

    def DeleteModel(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        self.fake.find(request.model, context)
        del self.fake.models[request.model]
        return model_pb2.DeleteModelResponse(freed_bytes=98_362_432)

    def LoadModel(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        self.fake.find(request.model, context)
        answer = model_pb2.LoadModelResponse(runner=runner(model=request.model))
        answer.load_time.FromMilliseconds(1250)
        return answer

    def UnloadModel(self, request: Any, context: Any) -> Any:
        self.fake.unary(request, context)
        found = self.fake.find(request.model, context)
        return model_pb2.UnloadModelResponse(stopped=len(found.runners))

    def WatchModels(self, request: Any, context: Any) -> Any:
        return self.fake.play(self.fake.watch, request, context)


@contextmanager
def serving(socket: Path) -> Iterator[Fake]:
    """Serves a fake controller on a Unix socket."""
    fake = Fake(f"unix:{socket}")
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        completion_pb2_grpc.add_CompletionServiceServicer_to_server(Completions(fake), server)
        image_pb2_grpc.add_ImageServiceServicer_to_server(Images(fake), server)
        embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(Embeddings(fake), server)
        score_pb2_grpc.add_ScoreServiceServicer_to_server(Scores(fake), server)
        tokenize_pb2_grpc.add_TokenizeServiceServicer_to_server(Tokenizers(fake), server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(Models(fake), server)
        checks = health.HealthServicer()
        checks.set("", health_pb2.HealthCheckResponse.SERVING)
        checks.set("busy", health_pb2.HealthCheckResponse.NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        server.add_insecure_port(fake.target)
        server.start()
        try:
            yield fake
        finally:
            fake.cancelled.set()
            server.stop(0).wait()
