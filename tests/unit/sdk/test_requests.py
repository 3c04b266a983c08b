"""Arguments become requests, or InvalidRequest that names the field."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, cast

import pytest

from headrace import _calls
from headrace._requests import deadline
from headrace.errors import InvalidRequest
from headrace.types import CompletionOptions, Message, Tool, ToolCall
from headrace.v1 import completion_pb2

CHAT = [{"role": "user", "content": "hi"}]


def build(prompt: Any = "p", **options: Any) -> completion_pb2.StreamCompletionRequest:
    inputs = {name: options.pop(name, None) for name in ("messages", "token_ids")}
    model = options.pop("model", "m")
    call = _calls.stream_completion(
        model, prompt, **inputs, options=cast("CompletionOptions", options)
    )
    assert isinstance(call.request, completion_pb2.StreamCompletionRequest)
    return call.request


def test_what_is_not_said_is_absent() -> None:
    assert build(seed=None, stop=None) == completion_pb2.StreamCompletionRequest(
        model="m", prompt="p"
    )


def test_every_option_reaches_its_field() -> None:
    request = build(
        temperature=0.0,
        top_p=0.5,
        top_k=40,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        penalty_window=32,
        logit_bias={5: -2.0},
        seed=0,
        max_tokens=9,
        stop="END",
        stop_token_ids=[2],
        ignore_eos=True,
        include_stop=False,
        logprobs=3,
        keep_alive=timedelta(minutes=1),
        priority=-5,
        request_id="id",
        adapter="",
    )
    expected = completion_pb2.StreamCompletionRequest(
        model="m", prompt="p", max_tokens=9, priority=-5, request_id="id", adapter=""
    )
    expected.sampling.CopyFrom(
        completion_pb2.SamplingOptions(
            temperature=0,
            top_p=0.5,
            top_k=40,
            min_p=0.25,
            repetition_penalty=1.5,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            penalty_window=32,
            logit_bias={5: -2.0},
            seed=0,
        )
    )
    expected.stop.CopyFrom(
        completion_pb2.StopOptions(
            strings=["END"], token_ids=[2], ignore_eos=True, include_stop=False
        )
    )
    expected.logprobs.CopyFrom(completion_pb2.LogprobsOptions(enabled=True, top=3))
    expected.keep_alive.FromSeconds(60)
    assert request == expected


def test_messages_are_mappings_or_values() -> None:
    request = build(
        None,
        messages=[*CHAT, Message("assistant", "yo", name="n", reasoning="r")],
        template_options={"enable_thinking": False},
        add_generation_prompt=False,
    )
    first, second = request.chat.messages
    assert (first.role, first.content) == (completion_pb2.CHAT_ROLE_USER, "hi")
    assert (second.role, second.content) == (completion_pb2.CHAT_ROLE_ASSISTANT, "yo")
    assert (second.name, second.reasoning) == ("n", "r")
    assert request.chat.template_options["enable_thinking"] is False
    assert request.chat.HasField("add_generation_prompt")


def test_tools_are_mappings_or_values() -> None:
    call = ToolCall("i", "f", '{"a": 1}')
    request = build(
        None,
        messages=[
            *CHAT,
            Message("assistant", "", tool_calls=[call]),
            {"role": "assistant", "tool_calls": [{"id": "j", "name": "f"}]},
            Message("tool", "2", tool_call_id="i"),
        ],
        tools=[
            Tool("f", "Does.", {"type": "object"}, strict=True),
            {"name": "g", "parameters": Described},
            Tool("h", parameters="{}"),
        ],
        tool_choice="g",
    )
    _, first, second, answer = request.chat.messages
    assert [(c.id, c.name, c.arguments_json) for c in first.tool_calls] == [("i", "f", '{"a": 1}')]
    assert [(c.id, c.name, c.arguments_json) for c in second.tool_calls] == [("j", "f", "")]
    assert (answer.role, answer.tool_call_id) == (completion_pb2.CHAT_ROLE_TOOL, "i")
    f, g, h = request.chat.tools
    assert f == completion_pb2.Tool(
        name="f", description="Does.", parameters_json_schema='{"type": "object"}', strict=True
    )
    assert g == completion_pb2.Tool(name="g", parameters_json_schema='{"type": "object"}')
    assert h.parameters_json_schema == "{}"
    choice = completion_pb2.ToolChoice
    assert request.chat.tool_choice == choice(mode=choice.MODE_ONE, name="g")
    for name in ("auto", "none", "required"):
        request = build(None, messages=CHAT, tool_choice=name)
        assert request.chat.tool_choice == choice(mode=choice.Mode.Value(f"MODE_{name.upper()}"))


def test_token_ids_are_an_input_even_when_empty() -> None:
    assert build(None, token_ids=[]).WhichOneof("input") == "token_ids"
    assert list(build(None, token_ids=(1, 2)).token_ids.ids) == [1, 2]


def test_logprobs_may_be_a_flag() -> None:
    assert not build(logprobs=True).logprobs.HasField("top")
    assert not build(logprobs=False).HasField("logprobs")


@pytest.mark.parametrize(
    ("arguments", "field", "word"),
    [
        ({"prompt": "a\ud800"}, "prompt", "U+D800 at position 1"),
        ({"prompt": 3}, "prompt", "text"),
        ({"model": None, "prompt": b"\xff"}, "prompt", "text"),
        ({"prompt": None}, "input", "exactly one"),
        ({"messages": CHAT}, "input", "exactly one"),
        ({"prompt": None, "messages": "hi"}, "chat.messages", "sequence"),
        ({"prompt": None, "messages": ["hi"]}, "chat.messages[0]", "mapping"),
        (
            {"prompt": None, "messages": [*CHAT, {"role": "robot", "content": ""}]},
            "chat.messages[1].role",
            "system, user",
        ),
        ({"prompt": None, "messages": [{"role": "user"}]}, "chat.messages[0].content", "required"),
        (
            {"prompt": None, "messages": [{"role": "user", "content": "\udfff"}]},
            "chat.messages[0].content",
            "surrogate",
        ),
        (
            {"prompt": None, "messages": [{**CHAT[0], "contents": ""}]},
            "chat.messages[0].contents",
            "no field",
        ),
        (
            {"prompt": None, "messages": CHAT, "template_options": {"a": object()}},
            "chat.template_options",
            "JSON",
        ),
        ({"add_generation_prompt": True}, "chat.add_generation_prompt", "messages"),
        ({"tools": []}, "chat.tools", "messages"),
        ({"prompt": None, "messages": CHAT, "tools": "f"}, "chat.tools", "sequence"),
        (
            {"prompt": None, "messages": CHAT, "tools": ["f"]},
            "chat.tools[0]",
            "a Tool or a mapping",
        ),
        (
            {"prompt": None, "messages": CHAT, "tools": [{"function": {}}]},
            "chat.tools[0].function",
            "no field of a tool",
        ),
        (
            {"prompt": None, "messages": CHAT, "tools": [Tool("f", parameters={"a": object()})]},
            "chat.tools[0].parameters",
            "JSON",
        ),
        ({"prompt": None, "messages": CHAT, "tool_choice": 1}, "chat.tool_choice", "text"),
        (
            {"prompt": None, "messages": [{"role": "assistant", "tool_calls": [{"id": 1}]}]},
            "chat.messages[0].tool_calls[0].id",
            "text",
        ),
        ({"prompt": None, "token_ids": [1, -1]}, "token_ids.ids[1]", "2^32"),
        ({"prompt": None, "token_ids": 5}, "token_ids.ids", "sequence"),
        ({"max_tokens": 2**31}, "max_tokens", "2^31"),
        ({"max_tokens": 1.5}, "max_tokens", "whole number"),
        ({"seed": 2**63}, "sampling.seed", "2^63"),
        ({"temperature": "hot"}, "sampling.temperature", "number"),
        ({"logit_bias": {-1: 2.0}}, "sampling.logit_bias[-1]", "token id"),
        ({"stop": ["a", 1]}, "stop.strings[1]", "text"),
        ({"stop_token_ids": [2**32]}, "stop.token_ids[0]", "2^32"),
        ({"keep_alive": math.nan}, "keep_alive", "finite"),
        ({"keep_alive": "5m"}, "keep_alive", "seconds"),
        ({"logprobs": "all"}, "logprobs.top", "whole number"),
    ],
)
def test_what_cannot_be_sent_is_refused_by_name(
    arguments: dict[str, Any], field: str, word: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build(**arguments)
    (violation,) = caught.value.violations
    assert violation.field == field
    assert word in violation.description
    assert field in str(caught.value)


class Described:
    """What a model of pydantic looks like from here."""

    @staticmethod
    def model_json_schema() -> dict[str, Any]:
        return {"type": "object"}


@pytest.mark.parametrize(
    "schema", ['{"type": "object"}', {"type": "object"}, Described, Described()], ids=repr
)
def test_a_schema_is_text_a_mapping_or_what_describes_itself(schema: Any) -> None:
    assert build(json_schema=schema).json_schema == '{"type": "object"}'


def test_the_form_of_an_output() -> None:
    assert build(regex="a+").regex == "a+"
    assert build(lark_grammar="start: /a/").lark_grammar == "start: /a/"
    assert build(choices=("a", "b")).choices.values == ["a", "b"]
    assert build(choices="yes").choices.values == ["yes"]
    assert build(choices=[]).WhichOneof("constraint") == "choices"
    assert build(reasoning_max_tokens=5).reasoning.max_tokens == 5


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"regex": "a", "choices": ["a"]}, "choices"),
        ({"json_schema": 5}, "json_schema"),
        ({"json_schema": {"a": {1, 2}}}, "json_schema"),
        ({"regex": 5}, "regex"),
        ({"choices": ["a", 5]}, "choices.values[1]"),
        ({"reasoning_max_tokens": "5"}, "reasoning.max_tokens"),
    ],
    ids=str,
)
def test_a_form_that_cannot_be_sent_is_refused_by_name(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        build(**options)
    assert [violation.field for violation in raised.value.violations] == [field]


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="temprature"):
        build(temprature=1)


def test_deadlines() -> None:
    assert deadline(None, None) is None
    assert deadline(None, 3) == 3
    assert deadline(math.inf, 3) is None
    assert deadline(0, 3) == 0
    for bad in (-1, math.nan, "1", True):
        with pytest.raises(InvalidRequest, match="timeout"):
            deadline(bad, None)  # type: ignore[arg-type]
