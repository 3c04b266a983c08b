"""What is wrong with a request is said with the field's name, and the runner goes on."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from headrace.errors import (
    HeadraceError,
    InvalidRequest,
    ModelMismatch,
    UnsupportedCapability,
    UnsupportedParameter,
    from_rpc_error,
)
from headrace.v1.completion_pb2 import (
    ChatInput,
    ChatMessage,
    ChatRole,
    Choices,
    CompletionInput,
    LogprobsOptions,
    ReasoningOptions,
    ResumedChoice,
    SamplingOptions,
    StopOptions,
    StreamCompletionRequest,
    Tool,
    ToolChoice,
    XtcOptions,
)
from headrace.v1.embedding_pb2 import EmbeddingInput, EmbedRequest
from headrace.v1.embedding_pb2_grpc import EmbeddingServiceStub
from headrace.v1.runner_pb2 import AbortRequest
from headrace.v1.tokenize_pb2 import (
    CountTokensRequest,
    DetokenizeRequest,
    RenderChatRequest,
    TokenizeRequest,
)
from tests.integration.runner.api import ENDLESS, GREEDY, MODEL, TIMEOUT, Api, prompt, tokens

NAN = math.nan


def sampling(**options: Any) -> StreamCompletionRequest:
    return prompt("fox", sampling=SamplingOptions(**options))


def stop(**options: Any) -> StreamCompletionRequest:
    return prompt("fox", stop=StopOptions(**options))


def chat(*messages: ChatMessage, **fields: Any) -> StreamCompletionRequest:
    """A chat; `fields` are those of the chat, or of the request."""
    own = {name: fields.pop(name) for name in ("tools", "tool_choice") if name in fields}
    said = ChatInput(messages=messages, **own)
    return StreamCompletionRequest(model=MODEL, chat=said, **fields)


def sent_of(index: int, *ids: int) -> list[ResumedChoice]:
    """What was sent of one choice, to be resumed."""
    return [ResumedChoice(index=index, token_ids=ids)]


HELLO = ChatMessage(role=ChatRole.CHAT_ROLE_USER, content="Hello")
LOOK = [Tool(name="look")]
FORCED = ToolChoice(mode=ToolChoice.MODE_REQUIRED)
UNNAMED = ToolChoice(mode=ToolChoice.MODE_ONE)
NAMED = ToolChoice(mode=ToolChoice.MODE_ONE, name="look")

BROKEN_RULES = [
    ("sampling.temperature", sampling(temperature=-1)),
    ("sampling.temperature", sampling(temperature=10.5)),
    ("sampling.temperature", sampling(temperature=NAN)),
    ("sampling.temperature", sampling(temperature=math.inf)),
    ("sampling.top_p", sampling(top_p=2)),
    ("sampling.top_p", sampling(top_p=0)),
    ("sampling.top_p", sampling(top_p=NAN)),
    ("sampling.top_k", sampling(top_k=-1)),
    ("sampling.min_p", sampling(min_p=1.5)),
    ("sampling.xtc.probability", sampling(xtc=XtcOptions(probability=2))),
    ("sampling.xtc.threshold", sampling(xtc=XtcOptions(probability=0.5, threshold=0.6))),
    ("sampling.repetition_penalty", sampling(repetition_penalty=0)),
    ("sampling.presence_penalty", sampling(presence_penalty=11)),
    ("sampling.frequency_penalty", sampling(frequency_penalty=NAN)),
    ("sampling.penalty_window", sampling(penalty_window=0)),
    ("sampling.seed", sampling(seed=-1)),
    ("sampling.logit_bias[5]", sampling(logit_bias={5: 2000})),
    ("sampling.logit_bias[5]", sampling(logit_bias={5: NAN})),
    ("sampling.logit_bias[99999]", sampling(logit_bias={99999: 1})),
    ("stop.strings", stop(strings=["a"] * 10_000)),
    ("stop.strings[1]", stop(strings=["a", ""])),
    ("stop.token_ids[1]", stop(token_ids=[1, 99999])),
    ("max_tokens", prompt("fox", 0)),
    ("n", prompt("fox", n=0)),
    ("n", prompt("fox", n=17)),
    ("n", prompt("fox", n=3)),  # More than this runner computes at once.
    ("resume_token_ids", prompt("fox", n=2, resume_token_ids=[1])),
    ("resume_token_ids[1]", prompt("fox", resume_token_ids=[1, 99999])),
    ("resume_choices[0].index", prompt("fox", n=2, resume_choices=sent_of(2, 1))),
    ("resume_choices[0].index", prompt("fox", resume_choices=sent_of(-1, 1))),
    ("resume_choices[0].token_ids", prompt("fox", resume_choices=sent_of(0))),
    ("resume_choices[0].token_ids[1]", prompt("fox", resume_choices=sent_of(0, 1, 99999))),
    ("resume_choices", prompt("fox", resume_choices=sent_of(0, 1), resume_token_ids=[1])),
    ("logprobs.top", prompt("fox", logprobs=LogprobsOptions(enabled=True, top=21))),
    ("logprobs.top", prompt("fox", logprobs=LogprobsOptions(top=3))),
    ("priority", prompt("fox", priority=101)),
    ("request_id", prompt("fox", request_id="not one word")),
    ("request_id", prompt("fox", request_id="x" * 129)),
    ("model", StreamCompletionRequest(prompt="fox")),
    ("input", StreamCompletionRequest(model=MODEL)),
    ("prompt", prompt("")),
    ("prompt", prompt("x" * 20_000_000)),
    ("token_ids.ids", tokens([])),
    ("token_ids.ids[1]", tokens([1, 99999])),
    ("chat.messages", chat()),
    ("chat.messages[1].role", chat(HELLO, ChatMessage(role=99, content="?"))),  # type: ignore[arg-type]
    ("chat.messages[0].role", chat(ChatMessage(content="?"))),
    ("chat.messages[0].content", chat(ChatMessage(role=ChatRole.CHAT_ROLE_USER))),
    ("chat.tool_choice.name", chat(HELLO, tools=LOOK, tool_choice=ToolChoice(name="look"))),
    ("chat.tool_choice.name", chat(HELLO, tools=LOOK, tool_choice=UNNAMED)),
    ("chat.tools", chat(HELLO, tool_choice=FORCED)),
    ("json_schema", prompt("fox", json_schema="{")),
    ("regex", prompt("fox", regex="(")),
    ("lark_grammar", prompt("fox", lark_grammar="start: nothing")),
    ("choices.values", prompt("fox", choices=Choices())),
    ("stop.ignore_eos", prompt("fox", regex="a", stop=ENDLESS)),
]

UNSUPPORTED = [
    ("reasoning.enabled", prompt("fox", reasoning=ReasoningOptions(enabled=True))),
    ("reasoning.max_tokens", prompt("fox", reasoning=ReasoningOptions(max_tokens=5))),
    ("adapter", prompt("fox", adapter="pirate")),
    ("chat.tools", chat(HELLO, tools=LOOK)),
    ("chat.tools", chat(HELLO, tools=LOOK, tool_choice=FORCED)),
    ("chat.tools", chat(HELLO, tools=LOOK, tool_choice=NAMED)),
]


async def refused(api: Api, request: StreamCompletionRequest, **options: Any) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        await api.stream(request, **options).rest()
    return caught.value


async def goes_on(api: Api) -> None:
    answer = await api.complete(prompt("the quick brown fox", 2, stop=ENDLESS))
    assert len(answer.token_ids) == 2


@pytest.mark.parametrize(("field", "request_"), BROKEN_RULES)
async def test_a_broken_rule_is_named(
    tiny: Api, field: str, request_: StreamCompletionRequest
) -> None:
    error = await refused(tiny, request_)
    assert isinstance(error, InvalidRequest)
    assert field in [violation.field for violation in error.violations]
    assert field in error.message
    await goes_on(tiny)


async def test_all_broken_rules_are_named_at_once(tiny: Api) -> None:
    error = await refused(tiny, prompt("fox", 0, sampling=SamplingOptions(top_p=2, seed=-1)))
    fields = {violation.field for violation in error.violations}
    assert fields == {"max_tokens", "sampling.top_p", "sampling.seed"}


@pytest.mark.parametrize(("field", "request_"), UNSUPPORTED)
async def test_b9_what_cannot_be_honoured_is_refused(
    tiny: Api, field: str, request_: StreamCompletionRequest
) -> None:
    error = await refused(tiny, request_)
    assert isinstance(error, UnsupportedParameter)
    assert error.metadata["field"] == field
    assert [violation.field for violation in error.violations] == [field]
    await goes_on(tiny)


async def test_b9_reasoning_of_a_model_that_has_none_is_refused(api: Api) -> None:
    request = chat(HELLO, reasoning=ReasoningOptions(enabled=True))
    error = await refused(api, request)
    assert isinstance(error, UnsupportedParameter)
    assert error.metadata["field"] == "reasoning.enabled"
    # What it does in any case is no wish that is ignored.
    request.reasoning.enabled = False
    request.max_tokens = 1
    await api.complete(request)


async def test_b9_tools_that_are_not_to_be_called_need_no_form(api: Api) -> None:
    never = ToolChoice(mode=ToolChoice.MODE_NONE)
    plain = chat(HELLO, max_tokens=3, sampling=GREEDY)
    offered = chat(HELLO, tools=LOOK, tool_choice=never, max_tokens=3, sampling=GREEDY)
    answers = [await api.complete(request) for request in (plain, offered)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].started.prompt_tokens == answers[1].started.prompt_tokens


def test_b9_every_field_of_the_contract_is_honoured_or_refused() -> None:
    honoured = (
        "request_id model prompt chat token_ids sampling stop max_tokens n logprobs priority"
        " reasoning resume_token_ids resume_choices json_schema regex lark_grammar choices"
    )
    # Read by the controller; the runner stays loaded anyway.
    not_for_runners = "keep_alive"
    refused_ones = {field for field, _ in UNSUPPORTED if "." not in field}
    fields = {field.name for field in StreamCompletionRequest.DESCRIPTOR.fields}
    assert fields == {*honoured.split(), not_for_runners, *refused_ones}


def test_b9_so_is_every_field_within() -> None:
    honoured: dict[type[Message], str] = {
        ChatInput: "messages tool_choice template_options add_generation_prompt",
        LogprobsOptions: "enabled top",
        ReasoningOptions: "in_text",
        SamplingOptions: "temperature top_p top_k min_p xtc repetition_penalty presence_penalty"
        " frequency_penalty penalty_window seed logit_bias",
        StopOptions: "strings token_ids ignore_eos include_stop",
        ToolChoice: "name mode",
        XtcOptions: "probability threshold",
    }
    refused_ones = {field.rpartition(".")[2] for field, _ in UNSUPPORTED if "." in field}
    for message, names in honoured.items():
        fields = {field.name for field in message().DESCRIPTOR.fields}
        if message is not LogprobsOptions:  # Its `enabled` is another one.
            fields -= refused_ones
        assert fields == set(names.split())


@pytest.mark.parametrize(
    "data",
    [
        b"\x12\x09the-model\x1a\x02\xff\xfe",  # a prompt that is not UTF-8
        b"\x12\x09the-model\x1a\x09cut",  # a prompt that ends early
        b"\xff\xff\xff\xff",
    ],
    ids=["not UTF-8", "truncated", "noise"],
)
async def test_bytes_that_are_no_request_are_refused(tiny: Api, data: bytes) -> None:
    method: Any = tiny.channel.unary_stream("/headrace.v1.CompletionService/StreamCompletion")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in method(data, timeout=TIMEOUT):
            pass
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidRequest)
    assert error.reason == "INVALID_REQUEST"
    assert "cannot be decoded" in error.message
    await goes_on(tiny)


async def test_another_model_is_a_mismatch(tiny: Api) -> None:
    error = await refused(tiny, StreamCompletionRequest(model="other", prompt="fox"))
    assert isinstance(error, ModelMismatch)
    assert error.metadata == {"wanted": "other", "serving": MODEL}
    digest = [("headrace-digest", "sha256:other")]
    error = await refused(tiny, prompt("fox"), metadata=digest)
    assert isinstance(error, ModelMismatch)
    assert error.metadata == {"wanted": "sha256:other", "serving": "sha256:abc"}


async def test_the_digest_counts_and_not_the_name(tiny: Api) -> None:
    request = prompt("fox", 1)
    request.model = "an alias"
    answer = await tiny.stream(request, metadata=[("headrace-digest", "sha256:abc")]).rest()
    assert answer.started.model == "an alias"
    request.model = "sha256:abc"
    assert (await tiny.complete(request)).started.digest == "sha256:abc"


async def test_two_requests_of_one_id_both_run(tiny: Api) -> None:
    first = tiny.stream(prompt("fox", 50_000, request_id="mine", stop=ENDLESS))
    await first.until("delta")
    answer = await tiny.complete(prompt("fox", 2, request_id="mine", stop=ENDLESS))
    assert (answer.started.id, len(answer.token_ids)) == ("mine", 2)
    assert await first.next() == "delta"  # It is none of the first one's concern.
    first.call.cancel()


async def test_every_method_checks_the_model(tiny: Api) -> None:
    stub: Any = tiny.tokenize
    hello = ChatInput(messages=[HELLO])
    counted = CompletionInput(prompt="fox")
    for method, request in (
        (stub.Tokenize, TokenizeRequest(model="other", text="fox")),
        (stub.Detokenize, DetokenizeRequest(model="other", token_ids=[1])),
        (stub.RenderChat, RenderChatRequest(model="other", chat=hello)),
        (stub.CountTokens, CountTokensRequest(model="other", input=counted)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(request, timeout=TIMEOUT)
        error = from_rpc_error(caught.value)
        assert isinstance(error, ModelMismatch)
        assert error.metadata == {"wanted": "other", "serving": MODEL}
        await method(request, metadata=[("headrace-digest", "sha256:abc")], timeout=TIMEOUT)


async def test_requests_without_an_id_get_their_own(tiny: Api) -> None:
    answers = await asyncio.gather(*(tiny.complete(prompt("fox", 1)) for _ in range(3)))
    assert len({answer.started.id for answer in answers}) == 3


async def test_other_services_check_their_rules_too(tiny: Api) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await tiny.runner.Abort(AbortRequest(), timeout=TIMEOUT)
    error = from_rpc_error(caught.value)
    assert [violation.field for violation in error.violations] == ["request_id"]


async def test_a_model_for_text_makes_no_vectors(tiny: Api) -> None:
    stub: Any = EmbeddingServiceStub(tiny.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Embed(
            EmbedRequest(model=MODEL, inputs=[EmbeddingInput(text="a")]), timeout=TIMEOUT
        )
    error = from_rpc_error(caught.value)
    assert isinstance(error, UnsupportedCapability)
    assert error.metadata == {"model": MODEL, "capability": "embedding"}
