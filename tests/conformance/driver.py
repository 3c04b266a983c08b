"""The driver of the Python SDK; README.md says what a driver does.

The SDK's calls have types of its own in the place of messages, and no headers. So the driver makes
the same calls, by the same channel, one layer below, with the messages left as they are.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from headrace import Client
from headrace._calls import Streaming, Unary
from headrace._folds import CompletionFold
from headrace._image_fold import ImageFold
from headrace._streams import CompletionStream, ImageStream, Stream
from headrace.errors import HeadraceError
from headrace.v1.completion_pb2 import StreamCompletionResponse
from headrace.v1.image_pb2 import StreamImageResponse
from tests.conformance.telling import told

for _part in ("common", "completion", "embedding", "errors", "image", "model", "runner", "score"):
    import_module(f"headrace.v1.{_part}_pb2")
import_module("headrace.v1.tokenize_pb2")
import_module("grpc_health.v1.health_pb2")

_COMPLETE = "/headrace.v1.CompletionService/StreamCompletion"
_DRAW = "/headrace.v1.ImageService/StreamImage"


def _method(path: str) -> MethodDescriptor:
    _, service, method = path.split("/")
    return descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]


def _request(method: MethodDescriptor, values: dict[str, Any]) -> Message:
    made = message_factory.GetMessageClass(method.input_type)()
    return json_format.ParseDict(values, made)


def _answer(method: MethodDescriptor) -> type[Message]:
    return message_factory.GetMessageClass(method.output_type)


class _Messages:
    """Folds a stream into nothing: its messages are its events."""

    def add(self, message: Message) -> Message:
        return message

    def result(self, trace_id: str) -> str:
        return trace_id


def _noted(error: HeadraceError) -> str:
    """The trace that the SDK has written under the error."""
    notes = getattr(error, "__notes__", [])
    return next((note.split()[1] for note in notes if note.startswith("trace ")), "")


@contextmanager
def _within(traceparent: str | None) -> Iterator[None]:
    """Makes a span of this trace the current one."""
    if traceparent is None:
        yield
        return
    found = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    token = context.attach(trace.set_span_in_context(trace.get_current_span(found)))
    try:
        yield
    finally:
        context.detach(token)


class Driver:
    """Has one client at a time."""

    def __init__(self) -> None:
        self._client: Client | None = None

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command."""
        actions: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "connect": self.connect,
            "call": self.call,
            "complete": self.complete,
            "draw": self.draw,
        }
        with _within(command.get("traceparent")):
            return actions[command["do"]](command)

    def connect(self, command: dict[str, Any]) -> dict[str, Any]:
        if self._client is not None:
            self._client.close()
            self._client = None
        credentials = None
        if command["target"].startswith("https://"):
            files = (command.get(name) for name in ("ca", "key", "cert"))
            read = (Path(name).read_bytes() if name else None for name in files)
            credentials = grpc.ssl_channel_credentials(*read)
        try:
            self._client = Client(
                command["target"],
                credentials=credentials,
                token=command.get("token", ""),
                timeout=command.get("timeout"),
            )
        except HeadraceError as error:
            return {"error": told(error)}
        return {}

    def call(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._client is not None
        method = _method(command["method"])
        request = _request(method, command.get("request", {}))
        path, timeout = command["method"], command.get("timeout")
        messages: list[Message] = []
        outcome: dict[str, Any] = {"trace_id": "", "error": None}
        stream: Stream[Message, str] | None = None
        try:
            if method.server_streaming:
                flow = Streaming(path, request, _answer(method), _Messages())
                stream = self._client._stream(Stream, flow, timeout)
                outcome["trace_id"] = stream.trace_id
                for message in stream:
                    messages.append(message)
                    if len(messages) == command.get("cancel_after"):
                        stream.cancel()
                        break
            else:
                call: Unary[Message, Message] = Unary(
                    path, request, _answer(method), lambda answer: answer
                )
                messages.append(self._client._unary(call, timeout))
        except HeadraceError as error:
            outcome |= {"error": told(error), "trace_id": _noted(error)}
        return {"messages": [*map(json_format.MessageToDict, messages)], **outcome}

    def complete(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._client is not None
        method = _method(_COMPLETE)
        request = _request(method, command["request"])
        flow = Streaming(_COMPLETE, request, StreamCompletionResponse, CompletionFold())
        stream = self._client._stream(CompletionStream, flow, command.get("timeout"))
        try:
            whole = stream.collect()
        except HeadraceError as error:
            return {"error": told(error), "trace_id": _noted(error)}
        return {
            "text": whole.text,
            "token_ids": list(whole.token_ids),
            "finish_reason": f"FINISH_REASON_{whole.finish_reason.name}",
            "input_tokens": whole.usage.prompt_tokens,
            "output_tokens": whole.usage.output_tokens,
            "resumes": whole.completed.resumed,
            "trace_id": whole.trace_id,
            "error": None,
        }

    def draw(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._client is not None
        method = _method(_DRAW)
        request = _request(method, command["request"])
        fold = ImageFold(command["request"].get("count", 1))
        flow = Streaming(_DRAW, request, StreamImageResponse, fold)
        stream = self._client._stream(ImageStream, flow, command.get("timeout"))
        try:
            drawn = stream.collect()
        except HeadraceError as error:
            return {"error": told(error), "trace_id": _noted(error)}
        images = [
            {
                "sha256": hashlib.sha256(image.data).hexdigest(),
                "bytes": len(image.data),
                "media_type": image.media_type,
            }
            for image in drawn.images
        ]
        return {"images": images, "trace_id": drawn.trace_id, "error": None}


def main() -> None:
    """Until the end of the input."""
    driver = Driver()
    for line in sys.stdin:
        print(json.dumps(driver.do(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
