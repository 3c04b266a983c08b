"""Requests that are wrong: each gets its typed error, and the controller goes on."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from headrace.errors import HeadraceError, from_rpc_error
from headrace.v1 import completion_pb2 as completion
from headrace.v1.common_pb2 import TokenIds
from headrace.v1.completion_pb2 import ChatInput, ChatMessage, ChatRole
from headrace.v1.embedding_pb2 import EmbeddingInput, EmbedRequest
from headrace.v1.image_pb2 import StreamImageRequest
from headrace.v1.model_pb2 import CopyModelRequest, GetModelRequest, StreamImportModelRequest
from headrace.v1.tokenize_pb2 import CountTokensRequest, DetokenizeRequest, TokenizeRequest
from tests.e2e.harness import MODEL

STREAM = "/headrace.v1.CompletionService/StreamCompletion"
TOKENIZE = "/headrace.v1.TokenizeService/"
MODELS = "/headrace.v1.ModelService/"

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNSUPPORTED = "UNSUPPORTED_PARAMETER"


@dataclass(frozen=True)
class Case:
    """A wrong call, and how it is to be answered. `field`: its violation or metadata."""

    name: str
    request: Any
    field: str = ""
    code: grpc.StatusCode = INVALID
    reason: str = "INVALID_REQUEST"
    method: str = STREAM
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def data(self) -> bytes:
        if isinstance(self.request, bytes):
            return self.request
        data: bytes = self.request.SerializeToString()
        return data


def ask(**fields: Any) -> completion.StreamCompletionRequest:
    """A right request, but for what is given."""
    defaults: dict[str, Any] = {"model": MODEL, "max_tokens": 1}
    if not fields.keys() & {"prompt", "chat", "token_ids"}:
        defaults["prompt"] = "x"
    return completion.StreamCompletionRequest(**{**defaults, **fields})


def sample(**options: Any) -> completion.StreamCompletionRequest:
    return ask(sampling=completion.SamplingOptions(**options))


def stop(**options: Any) -> completion.StreamCompletionRequest:
    return ask(stop=completion.StopOptions(**options))


def chat(*messages: ChatMessage, **options: Any) -> completion.StreamCompletionRequest:
    return ask(chat=ChatInput(messages=messages, **options))


def says(role: int, content: str = "hello") -> ChatMessage:
    return ChatMessage(role=role, content=content)  # type: ignore[arg-type]  # also unknown roles


USER = ChatRole.CHAT_ROLE_USER
NOT_UTF8 = b"\x12\x0dsmollm2:135m\xff\x1a\x01x"
SURROGATE = b"\x12\x0csmollm2:135m\x1a\x03\xed\xa0\x80"

CASES = [
    Case("no fields", b"", "model"),
    Case("no input", completion.StreamCompletionRequest(model=MODEL), "input"),
    Case("no message at all", b"\xff\xff\xff\xff"),
    Case("a model's name that is no UTF-8", NOT_UTF8),
    Case("a lone surrogate", SURROGATE),
    Case("a prompt of 20 MB", ask(prompt="x" * 20_000_000), "prompt"),
    Case("an empty prompt", ask(prompt=""), "prompt"),
    Case(
        "a prompt over the context",
        ask(token_ids=TokenIds(ids=[100] * 8193)),
        reason="CONTEXT_LENGTH_EXCEEDED",
        metadata={"limit": "8192", "actual": "8193"},
    ),
    Case("no tokens", ask(token_ids=TokenIds()), "token_ids.ids"),
    Case("an unknown token", ask(token_ids=TokenIds(ids=[1, 49152])), "token_ids.ids[1]"),
    Case(
        "an unknown model",
        ask(model="nothing-like-it"),
        reason="MODEL_NOT_FOUND",
        code=grpc.StatusCode.NOT_FOUND,
        metadata={"nearest": ""},
    ),
    Case(
        "a name with a slip",
        ask(model="smolm2:135m"),
        reason="MODEL_NOT_FOUND",
        code=grpc.StatusCode.NOT_FOUND,
        metadata={"model": "smolm2:135m", "nearest": MODEL},
    ),
    Case("a name that is a path", ask(model="../../etc/passwd"), "model"),
    Case("temperature -1", sample(temperature=-1), "sampling.temperature"),
    Case("temperature NaN", sample(temperature=float("nan")), "sampling.temperature"),
    Case("top_p 2", sample(top_p=2), "sampling.top_p"),
    Case("top_p 0", sample(top_p=0), "sampling.top_p"),
    Case("top_k -1", sample(top_k=-1), "sampling.top_k"),
    Case("min_p 2", sample(min_p=2), "sampling.min_p"),
    Case("a negative seed", sample(seed=-1), "sampling.seed"),
    Case("repetition penalty 0", sample(repetition_penalty=0), "sampling.repetition_penalty"),
    Case("a wild bias", sample(logit_bias={7: 1e6}), "sampling.logit_bias[7]"),
    Case("a bias of no token", sample(logit_bias={49152: 1}), "sampling.logit_bias[49152]"),
    Case("10,000 stops", stop(strings=["x"] * 10_000), "stop.strings"),
    Case("an empty stop", stop(strings=["a", ""]), "stop.strings[1]"),
    Case("a stop of no token", stop(token_ids=[1, 49152]), "stop.token_ids[1]"),
    Case("max_tokens 0", ask(max_tokens=0), "max_tokens"),
    Case(
        "21 logprobs",
        ask(logprobs=completion.LogprobsOptions(enabled=True, top=21)),
        "logprobs.top",
    ),
    Case("priority 101", ask(priority=101), "priority"),
    Case("a request id with a space", ask(request_id="a b"), "request_id"),
    Case("no messages", chat(), "chat.messages"),
    Case("no role", chat(says(0)), "chat.messages[0].role"),
    Case("an unknown role", chat(says(USER), says(99)), "chat.messages[1].role"),
    Case("an empty question", chat(says(USER, "")), "chat.messages[0].content"),
    Case("17 choices", ask(n=17), "n"),
    Case("resumption of 2 choices", ask(n=2, resume_token_ids=[1]), "resume_token_ids"),
    Case(
        "resumption of a third choice of 2",
        ask(n=2, resume_choices=[completion.ResumedChoice(index=2, token_ids=[1])]),
        "resume_choices[0].index",
    ),
    Case("resumption by no token", ask(resume_token_ids=[49152]), "resume_token_ids[0]"),
    Case("a schema that is none", ask(json_schema="{"), "json_schema"),
    Case("a schema of no type", ask(json_schema='{"type": "objekt"}'), "json_schema"),
    Case("half a regex", ask(regex="("), "regex"),
    Case("a grammar without a start", ask(lark_grammar="word: /a/"), "lark_grammar"),
    Case("no choices", ask(choices=completion.Choices()), "choices.values"),
    Case(
        "a form without an end",
        ask(regex="a", stop=completion.StopOptions(ignore_eos=True)),
        "stop.ignore_eos",
    ),
    # B9: what the model or this runner cannot honour is never ignored.
    Case("an adapter", ask(adapter="mine"), "adapter", reason=UNSUPPORTED),
    Case(
        "reasoning",
        ask(reasoning=completion.ReasoningOptions(enabled=True)),
        "reasoning.enabled",
        reason=UNSUPPORTED,
    ),
    Case(
        "a bound to reasoning",
        ask(reasoning=completion.ReasoningOptions(max_tokens=5)),
        "reasoning.max_tokens",
        reason=UNSUPPORTED,
    ),
    Case(
        "tools",
        chat(says(USER), tools=[completion.Tool(name="f")]),
        "chat.tools",
        reason=UNSUPPORTED,
    ),
    Case(
        "a forced tool call",
        chat(
            says(USER),
            tools=[completion.Tool(name="f")],
            tool_choice=completion.ToolChoice(mode=completion.ToolChoice.MODE_REQUIRED),
        ),
        "chat.tools",
        reason=UNSUPPORTED,
    ),
    # Other methods.
    Case("tokenize: no model", TokenizeRequest(text="x"), "model", method=TOKENIZE + "Tokenize"),
    Case(
        "tokenize: a slip",
        TokenizeRequest(model="smolm2:135m", text="x"),
        code=grpc.StatusCode.NOT_FOUND,
        reason="MODEL_NOT_FOUND",
        metadata={"nearest": MODEL},
        method=TOKENIZE + "Tokenize",
    ),
    Case(
        "detokenize: no token",
        DetokenizeRequest(model=MODEL, token_ids=[49152]),
        "token_ids[0]",
        method=TOKENIZE + "Detokenize",
    ),
    Case(
        "count: no input", CountTokensRequest(model=MODEL), "input", method=TOKENIZE + "CountTokens"
    ),
    Case(
        "show: a slip",
        GetModelRequest(model="smollm2:135"),
        method=MODELS + "GetModel",
        code=grpc.StatusCode.NOT_FOUND,
        reason="MODEL_NOT_FOUND",
        metadata={"nearest": MODEL},
    ),
    Case(
        "copy: a path",
        CopyModelRequest(source=MODEL, destination="/tmp/x"),
        "destination",
        method=MODELS + "CopyModel",
    ),
    Case(
        "import: no path",
        StreamImportModelRequest(model="m"),
        "source_path",
        method=MODELS + "StreamImportModel",
    ),
    Case(
        "import: a relative path",
        StreamImportModelRequest(model="m", source_path="m.gguf"),
        "source_path",
        method=MODELS + "StreamImportModel",
    ),
    Case(
        "import: an unknown quantisation",
        StreamImportModelRequest(model="m", source_path="/m.gguf", quantization=9),  # type: ignore[arg-type]
        "quantization",
        method=MODELS + "StreamImportModel",
    ),
    Case(
        "an image of a text model",
        StreamImageRequest(model=MODEL, prompt="a cat"),
        code=grpc.StatusCode.FAILED_PRECONDITION,
        reason="UNSUPPORTED_CAPABILITY",
        metadata={"model": MODEL, "capability": "image"},
        method="/headrace.v1.ImageService/StreamImage",
    ),
    Case(
        "vectors of a text model",
        EmbedRequest(model=MODEL, inputs=[EmbeddingInput(text="x")]),
        code=grpc.StatusCode.FAILED_PRECONDITION,
        reason="UNSUPPORTED_CAPABILITY",
        metadata={"model": MODEL, "capability": "embedding"},
        method="/headrace.v1.EmbeddingService/Embed",
    ),
]


async def call(channel: grpc.aio.Channel, method: str, data: bytes) -> list[bytes]:
    """All answers; unary methods answer a stream call as well."""
    stream: Any = channel.unary_stream(method)
    return [answer async for answer in stream(data, timeout=60)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_is_refused_with_code_reason_and_field(case: Case, channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, case.method, case.data)
    error: HeadraceError = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (case.code, case.reason), error
    if case.field:
        assert case.field in [violation.field for violation in error.violations]
    assert case.metadata.items() <= error.metadata.items()
    # The details string is the message of the details, and the whole is small.
    assert error.message == caught.value.details()
    trailing = caught.value.trailing_metadata() or ()
    details = dict(trailing)["grpc-status-details-bin"]
    assert 0 < len(details) < 4096


async def test_a_message_over_all_limits(channel: grpc.aio.Channel) -> None:
    """gRPC itself refuses what nobody should even read."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, STREAM, ask(prompt="x" * (33 << 20)).SerializeToString())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unknown_method(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, "/headrace.v1.CompletionService/Complete", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_controller_goes_on(channel: grpc.aio.Channel) -> None:
    """All of them at once, between two good requests' tokens."""
    good = ask(prompt="1, 2, 3,", max_tokens=3, keep_alive=Duration(seconds=300))

    async def bad(case: Case) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, case.method, case.data)
        return caught.value.code()

    answers = asyncio.gather(*(call(channel, STREAM, good.SerializeToString()) for _ in range(2)))
    codes = await asyncio.gather(*map(bad, CASES))
    assert codes == [case.code for case in CASES]
    for answer in await answers:
        last = completion.StreamCompletionResponse.FromString(answer[-1])
        assert last.WhichOneof("event") == "completed"
