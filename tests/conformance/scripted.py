"""A server that does what the name of the model tells it: what a healthy controller never does.

Its errors are put on the wire by the code that puts those of the controller there.

| model | GetModel, DeleteModel | StreamCompletion |
| --- | --- | --- |
| `fail:REASON` | fails | fails at once |
| `late:REASON` | | fails after a token |
| `flaky:ID:N` | is UNAVAILABLE N times, then answers | is UNAVAILABLE N times, then answers |
| `soon:ID:N` | the same, and tells the client to wait for 10 ms | |
| `final:ID:N` | the same, and tells the client not to try again | |
| `cut` | | ends well without having been completed |
| `choiceless` | | is completed without the one choice |
| `stray` | | has text of a choice that nobody asked for |
| `newer` | answers with fields that no client knows | has an event that no client knows |
| `long:N` | answers with a text of N bytes | |

StreamImage sends an image of `pixels`; where the model is called `damaged`, with a wrong checksum.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, NoReturn, Self

import grpc
from google.protobuf.message import Message

from headrace import errors
from headrace._status import PUSHBACK_KEY, to_status, trailing_metadata
from headrace.errors import FieldViolation, HeadraceError
from headrace.v1 import completion_pb2, image_pb2, model_pb2

PIXELS = bytes(range(256)) * 600
"""A file that comes in several pieces."""
_UNKNOWN = b"\xfa\x7d\x05later"
"""Field 2015, of a length of 5, as a later version of the contract might have."""

FAILURES: Mapping[str, HeadraceError] = {
    error.reason: error
    for error in (
        errors.InvalidRequest(violations=[FieldViolation("sampling.temperature", "is below 0")]),
        errors.ContextLengthExceeded(limit=8192, actual=9000),
        errors.UnsupportedParameter("this model has none", field="negative_prompt"),
        errors.UnsupportedCapability("it draws", model="emoji:64", capability="text"),
        errors.UnsupportedModel("it is of another kind", architecture="mamba9"),
        errors.ModelNotFound("smolm2", nearest=["smollm2:135m", "smollm2:360m"]),
        errors.ModelCorrupt(file="model-00001.safetensors"),
        errors.ModelMismatch(wanted="a", serving="b"),
        errors.Draining(3.0),
        errors.QueueFull(0.25, queue="model", limit=64),
        errors.DeadlineUnreachable(1.5),
        errors.InsufficientMemory(needs=1 << 34, free=1 << 30),
        errors.ModelTooLarge(needs=1 << 36, has=1 << 34),
        errors.LoadFailed("its runner did not come up", cause="NATIVE_ABORT"),
        errors.RunnerCrashed(cause="SIGNAL", tokens_sent=1),
        errors.CircuitOpen(30.0, cause="OUT_OF_MEMORY"),
        errors.Unauthenticated("no token"),
        errors.PermissionDenied("it may not", scope="manage"),
        errors.NotImplementedYet("not yet", method="/headrace.v1.X/Y"),
        errors.InternalError("0af7651916cd43dd8448eb211c80319c"),
        errors.ModelInUse("it is busy: größer als \N{CJK UNIFIED IDEOGRAPH-6C34}", model="m"),
        errors.SourceUnavailable("it is away", source="hf:org/repo"),
        errors.InsufficientDisk(needs=1 << 40, free=1 << 20),
        errors.RateLimited("too many", limit="max_requests", retry_after=1.25),
    )
}
"""One of each reason of the contract."""


class Scripted:
    """The server, on a port of its own. Use it in a `with` block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempts: Counter[str] = Counter()
        self._calls: list[tuple[str, list[tuple[str, str]]]] = []
        self._server = grpc.server(ThreadPoolExecutor(8))
        self._server.add_generic_rpc_handlers((self._handlers(),))
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self._port}"

    def attempts(self, model: str) -> int:
        """How often a model has been asked for."""
        with self._lock:
            return self._attempts[model]

    def metadata(self, model: str) -> dict[str, str]:
        """What came with the last call for a model; each key once."""
        with self._lock:
            found = next(found for name, found in reversed(self._calls) if name == model)
        assert len(dict(found)) == len(found), found
        return dict(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.stop(None).wait()

    def _handlers(self) -> grpc.GenericRpcHandler:
        def serialize(message: Message) -> bytes:
            return message.SerializeToString()

        methods = {
            "/headrace.v1.ModelService/GetModel": grpc.unary_unary_rpc_method_handler(
                self._get_model, model_pb2.GetModelRequest.FromString, serialize
            ),
            "/headrace.v1.ModelService/DeleteModel": grpc.unary_unary_rpc_method_handler(
                self._delete_model, model_pb2.DeleteModelRequest.FromString, serialize
            ),
            "/headrace.v1.CompletionService/StreamCompletion": grpc.unary_stream_rpc_method_handler(
                self._complete, completion_pb2.StreamCompletionRequest.FromString, serialize
            ),
            "/headrace.v1.ImageService/StreamImage": grpc.unary_stream_rpc_method_handler(
                self._draw, image_pb2.StreamImageRequest.FromString, serialize
            ),
        }

        class Handlers(grpc.GenericRpcHandler):
            def service(self, details: grpc.HandlerCallDetails) -> Any:
                return methods.get(str(details.method))

        return Handlers()

    def _noted(self, model: str, context: grpc.ServicerContext) -> int:
        """Remember the call; gives which one of this model it is."""
        metadata = [(str(key), str(value)) for key, value in context.invocation_metadata()]
        with self._lock:
            self._attempts[model] += 1
            self._calls.append((model, metadata))
            return self._attempts[model]

    def _get_model(
        self, request: model_pb2.GetModelRequest, context: grpc.ServicerContext
    ) -> model_pb2.GetModelResponse:
        attempt = self._noted(request.model, context)
        what, _, rest = request.model.partition(":")
        self._maybe_fail(what, rest, attempt, context)
        answer = model_pb2.GetModelResponse()
        answer.model.name = request.model
        if what == "newer":
            answer.MergeFromString(_UNKNOWN)
        if what == "long":
            answer.model.license = "x" * int(rest)
        return answer

    def _delete_model(
        self, request: model_pb2.DeleteModelRequest, context: grpc.ServicerContext
    ) -> model_pb2.DeleteModelResponse:
        attempt = self._noted(request.model, context)
        what, _, rest = request.model.partition(":")
        self._maybe_fail(what, rest, attempt, context)
        return model_pb2.DeleteModelResponse()

    def _complete(
        self, request: completion_pb2.StreamCompletionRequest, context: grpc.ServicerContext
    ) -> Iterator[completion_pb2.StreamCompletionResponse]:
        attempt = self._noted(request.model, context)
        what, _, rest = request.model.partition(":")
        self._maybe_fail(what, rest, attempt, context)
        answer = completion_pb2.StreamCompletionResponse
        yield answer(started=completion_pb2.CompletionStarted(id="1", model=request.model))
        if what == "newer":
            yield answer.FromString(_UNKNOWN)
        yield answer(delta=completion_pb2.CompletionDelta(text="a", token_ids=[1], output_tokens=1))
        if what == "late":
            fail(context, FAILURES[rest])
        if what == "cut":
            return
        if what == "stray":
            yield answer(delta=completion_pb2.CompletionDelta(choice=3, text="b", output_tokens=1))
        result = completion_pb2.ChoiceResult(
            finish_reason=completion_pb2.FINISH_REASON_LENGTH, output_tokens=1
        )
        results = [] if what == "choiceless" else [result]
        completed = completion_pb2.CompletionCompleted(choices=results)
        completed.usage.output_tokens = 1
        yield answer(completed=completed)

    def _draw(
        self, request: image_pb2.StreamImageRequest, context: grpc.ServicerContext
    ) -> Iterator[image_pb2.StreamImageResponse]:
        self._noted(request.model, context)
        answer = image_pb2.StreamImageResponse
        yield answer(started=image_pb2.ImageStarted(id="1", model=request.model))
        piece = 65536
        for offset in range(0, len(PIXELS), piece):
            data = PIXELS[offset : offset + piece]
            yield answer(chunk=image_pb2.ImageChunk(offset=offset, data=data))
        sum_of = PIXELS if request.model != "damaged" else PIXELS[1:]
        result = image_pb2.ImageResult(
            sha256=hashlib.sha256(sum_of).hexdigest(),
            media_type="image/png",
            size_bytes=len(PIXELS),
        )
        yield answer(completed=image_pb2.ImageCompleted(images=[result]))

    def _maybe_fail(
        self, what: str, rest: str, attempt: int, context: grpc.ServicerContext
    ) -> None:
        if what == "fail":
            fail(context, FAILURES[rest])
        if what not in ("flaky", "soon", "final") or attempt > int(rest.rpartition(":")[2]):
            return
        pushback = {"soon": "10", "final": "-1"}.get(what)
        if pushback is not None:
            context.set_trailing_metadata(((PUSHBACK_KEY, pushback),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "not now")


def fail(context: grpc.ServicerContext, error: HeadraceError) -> NoReturn:
    """End a call as the controller ends one."""
    status = to_status(error)
    context.set_trailing_metadata(trailing_metadata(error, status))
    context.abort(error.code, status.message)
