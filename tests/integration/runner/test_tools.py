"""Tool calls that have to come, from a model that talks nonsense: only the form makes them calls.

With the example of the docs.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace import Client
from headrace.errors import InvalidRequest
from headrace.v1.completion_pb2 import (
    ChatInput,
    ChatMessage,
    ChatRole,
    CompletionDelta,
    FinishReason,
    SamplingOptions,
    StreamCompletionRequest,
    Tool,
    ToolCall,
    ToolCallPart,
    ToolChoice,
)
from headrace.v1.completion_pb2_grpc import CompletionServiceStub
from tests.callers import make_caller
from tests.integration.runner.api import MODEL, Api, connected
from tests.integration.runner.child import Child, serving

_DOCS = Path(__file__).parents[3] / "docs"
_DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
_ADD = {
    "type": "object",
    "properties": {"a": _DIGIT, "b": _DIGIT},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOLS = [Tool(name="add", parameters_json_schema=json.dumps(_ADD)), Tool(name="now")]


@pytest.fixture(scope="module")
def caller_dir(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the markers of tool calls in place of two of its words."""
    return make_caller(tiny_dir, tmp_path_factory.mktemp("caller") / "model")


@pytest.fixture(scope="module")
def caller_runner(model_home: Path, caller_dir: Path) -> Iterator[Child]:
    with serving(model_home, caller_dir, "--name", MODEL) as child:
        yield child


@pytest.fixture
async def caller(caller_runner: Child) -> AsyncIterator[Api]:
    async with connected(caller_runner.address) as api:
        yield api


def asking(
    seed: int = 1, tools: list[Tool] = TOOLS, n: int = 1, **chat: Any
) -> StreamCompletionRequest:
    message = ChatMessage(role=ChatRole.CHAT_ROLE_USER, content="the quick brown fox")
    return StreamCompletionRequest(
        model=MODEL,
        chat=ChatInput(messages=[message], tools=tools, **chat),
        max_tokens=200,
        n=n,
        # The end of the text comes as soon as it may.
        sampling=SamplingOptions(seed=seed, logit_bias={0: 100}),
    )


def put_together(calls: list[ToolCall], parts: Iterable[ToolCallPart]) -> None:
    """Adds parts to the calls so far."""
    for part in parts:
        first = part.index == len(calls)
        assert (part.HasField("id"), part.HasField("name")) == (first, first)
        if first:
            calls.append(ToolCall(id=part.id, name=part.name))
        calls[part.index].arguments_json += part.arguments_json


async def deltas_of(api: Api, request: StreamCompletionRequest) -> list[CompletionDelta]:
    """The deltas of an answer that is nothing but calls."""
    found: list[CompletionDelta] = []
    stub = CompletionServiceStub(api.channel)
    async for response in stub.StreamCompletion(request, timeout=60):
        assert not response.delta.text
        if response.HasField("delta"):
            found.append(response.delta)
    ends = {choice.finish_reason for choice in response.completed.choices}
    assert ends == {FinishReason.FINISH_REASON_TOOL_CALLS}
    return found


async def calls_of(api: Api, request: StreamCompletionRequest) -> list[ToolCall]:
    """The calls of an answer that is nothing but calls."""
    calls: list[ToolCall] = []
    for delta in await deltas_of(api, request):
        put_together(calls, delta.tool_calls)
    return calls


async def test_a_call_comes_where_it_is_required(caller: Api) -> None:
    required = ToolChoice(mode=ToolChoice.MODE_REQUIRED)
    names = set()
    for seed in range(6):
        (call,) = await calls_of(caller, asking(seed, tool_choice=required))
        arguments = json.loads(call.arguments_json)
        names.add(call.name)
        if call.name == "add":
            assert all(arguments[key] in range(10) for key in "ab")
        else:
            assert arguments == {}
    assert names == {"add", "now"}


@pytest.mark.parametrize("name", ["add", "now"])
async def test_the_one_that_is_named_is_called(caller: Api, name: str) -> None:
    one = ToolChoice(mode=ToolChoice.MODE_ONE, name=name)
    for seed in range(3):
        (call,) = await calls_of(caller, asking(seed, tool_choice=one))
        assert call.name == name


async def test_a_call_comes_in_parts_with_its_tokens(caller: Api) -> None:
    one = ToolChoice(mode=ToolChoice.MODE_ONE, name="add")
    request = asking(tool_choice=one, n=2)
    request.logprobs.enabled = True
    most = 0
    for _ in range(20):  # What is not taken at once is merged, on a busy machine all of a call.
        deltas = await deltas_of(caller, request)
        for choice in range(2):
            own = [delta for delta in deltas if delta.choice == choice]
            assert all(len(delta.logprobs) == len(delta.token_ids) for delta in own)
            calls: list[ToolCall] = []
            parts = 0
            for delta in own:
                put_together(calls, delta.tool_calls)
                parts += len(delta.tool_calls)
            (call,) = calls
            assert set(json.loads(call.arguments_json)) == {"a", "b"}
            most = max(most, parts)
        if most > 3:
            return
    pytest.fail(f"at most {most} parts")


async def test_a_call_is_carried_on_in_its_midst(caller: Api) -> None:
    request = asking(tool_choice=ToolChoice(mode=ToolChoice.MODE_ONE, name="add"))
    request.request_id = "the-same"
    deltas = await deltas_of(caller, request)
    whole: list[ToolCall] = []
    for delta in deltas:
        put_together(whole, delta.tool_calls)
    calls: list[ToolCall] = []
    for place, delta in enumerate(deltas[:-1], 1):
        put_together(calls, delta.tool_calls)
        request.resume_token_ids.extend(delta.token_ids)
        again = [*map(ToolCall.FromString, map(ToolCall.SerializeToString, calls))]
        rest = await deltas_of(caller, request)
        for later in rest:
            put_together(again, later.tool_calls)
        assert again == whole, place
        assert sum(len(d.token_ids) for d in rest) == sum(len(d.token_ids) for d in deltas[place:])


async def test_a_call_that_the_limit_cuts_is_told_from_a_whole_one(caller: Api) -> None:
    request = asking(tool_choice=ToolChoice(mode=ToolChoice.MODE_ONE, name="add"))
    deltas = await deltas_of(caller, request)
    begun = next(i for i, delta in enumerate(deltas) if delta.tool_calls)
    request.max_tokens = deltas[begun + 1].output_tokens
    calls: list[ToolCall] = []
    async for response in CompletionServiceStub(caller.channel).StreamCompletion(request):
        put_together(calls, response.delta.tool_calls)
        assert not response.delta.text
    (choice,) = response.completed.choices
    assert choice.finish_reason == FinishReason.FINISH_REASON_LENGTH
    (call,) = calls
    assert call.name == "add"
    with pytest.raises(ValueError, match=r"\(char \d+\)"):
        json.loads(call.arguments_json)


async def test_a_model_that_is_free_to_call_nothing_does_not(caller: Api) -> None:
    answer = await caller.complete(asking())
    assert answer.completed.choices[0].finish_reason == FinishReason.FINISH_REASON_END_OF_TEXT


async def test_a_strict_tool_that_is_called_is_called_with_its_arguments(
    caller: Api, caller_dir: Path
) -> None:
    strict = [Tool(name="add", parameters_json_schema=json.dumps(_ADD), strict=True)]
    request = asking(tools=strict)
    vocabulary = json.loads((caller_dir / "tokenizer.json").read_text())["model"]["vocab"]
    # It calls by itself, and again, for as long as it may.
    request.sampling.logit_bias[vocabulary["<tool_call>"]] = 200
    request.max_tokens = 150
    calls: list[ToolCall] = []
    async for response in CompletionServiceStub(caller.channel).StreamCompletion(request):
        put_together(calls, response.delta.tool_calls)
    *whole, last = [call.arguments_json for call in calls]
    assert whole
    assert all(set(json.loads(arguments)) == {"a", "b"} for arguments in whole)
    assert last  # It may be cut.


@pytest.mark.parametrize(
    ("field", "chat"),
    [
        ("chat.tool_choice.name", {"tool_choice": ToolChoice(mode=ToolChoice.MODE_ONE, name="x")}),
        (
            "chat.tools",
            {
                "tools": [Tool(name="f", parameters_json_schema='{"type": "nothing"}')],
                "tool_choice": ToolChoice(mode=ToolChoice.MODE_REQUIRED),
            },
        ),
    ],
)
async def test_what_cannot_be_called_is_refused(
    caller: Api, field: str, chat: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await caller.stream(asking(**chat)).rest()
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_a_call_that_has_to_come_needs_an_end(caller: Api) -> None:
    request = asking(tool_choice=ToolChoice(mode=ToolChoice.MODE_REQUIRED))
    request.stop.ignore_eos = True
    with pytest.raises(InvalidRequest) as caught:
        await caller.stream(request).rest()
    assert [violation.field for violation in caught.value.violations] == ["stop.ignore_eos"]


def example(page: Path) -> dict[str, Any]:
    """What the code of a page that tells of tools defines."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    (code,) = [block for block in blocks if "def converse" in block]
    scope: dict[str, Any] = {}
    # A model that has learnt nothing takes its time to come to an end.
    exec(code.replace("max_tokens=200", "max_tokens=400"), scope)  # noqa: S102 - it is ours
    return scope


def test_the_example_of_the_docs_runs(
    caller_runner: Child, capsys: pytest.CaptureFixture[str]
) -> None:
    converse = example(_DOCS / "tools.md")["converse"]
    assert isinstance(converse(caller_runner.address, MODEL), str)
    assert re.match(r'weather\(\{\s*"city"', capsys.readouterr().out)


def test_the_example_of_the_sdk_runs(caller_runner: Child) -> None:
    called: list[str] = []
    scope = example(_DOCS / "python-sdk.md")

    def weather(city: str) -> None:
        called.append(city)

    scope["weather"] = weather
    with Client(caller_runner.address) as client:
        assert isinstance(scope["converse"](client, MODEL), str)
    assert called
