"""Every kind of input becomes tokens, or an error that names its field."""

import math
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from headrace.errors import (
    HeadraceError,
    InvalidRequest,
    UnsupportedCapability,
    UnsupportedParameter,
)
from headrace.v1.common_pb2 import TokenIds
from headrace.v1.completion_pb2 import (
    ChatInput,
    ChatMessage,
    ChatRole,
    CompletionInput,
    ReasoningOptions,
    ResumedChoice,
    StreamCompletionRequest,
)
from headrace_runner.models.chat import ChatTemplate
from headrace_runner.models.markup import Markup, ModelMarkup
from headrace_runner.models.tokenizer import Tokenizer
from headrace_runner.services.options import resume_ids
from headrace_runner.services.prompt import completion_prompt, prompt_ids, render_chat

# A template that writes down all it was given.
ECHO = ChatTemplate(
    {
        "default": "{{ tools | tojson }} {{ enable_thinking | tojson }} {{ budget }}"
        "{% for m in messages %}{{ m | tojson }}{% if m.tool_calls %}{% endif %}{% endfor %}"
        "{{ add_generation_prompt }}"
    },
    {},
)


@pytest.fixture
def template(smollm2_dir: Path, smollm2: Tokenizer) -> ChatTemplate:
    return ChatTemplate.load(smollm2_dir, smollm2.special_tokens)


def _chat(**fields: Any) -> ChatInput:
    return json_format.ParseDict(fields, ChatInput())


def _user(content: str = "Hi") -> dict[str, Any]:
    return {"role": "CHAT_ROLE_USER", "content": content}


def _field(error: HeadraceError) -> str:
    (violation,) = error.violations
    return violation.field


def test_prompt_chat_and_ids(smollm2: Tokenizer, template: ChatTemplate) -> None:
    def ids(**fields: Any) -> list[int]:
        request = StreamCompletionRequest(model="m", **fields)
        assert prompt_ids(CompletionInput(**fields), smollm2, template) == prompt_ids(
            request, smollm2, template
        )
        return prompt_ids(request, smollm2, template)

    assert smollm2.decode(ids(prompt="Once upon")) == b"Once upon"
    assert ids(token_ids=TokenIds(ids=[5, 49151])) == [5, 49151]
    chat = ids(chat=_chat(messages=[_user()]))
    assert smollm2.decode(chat).endswith(b"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert chat[0] == smollm2.bos_id
    opened = ids(chat=_chat(messages=[_user()], addGenerationPrompt=False))
    assert smollm2.decode(opened).endswith(b"Hi<|im_end|>\n")


def test_a_prompt_gets_the_models_own_first_token(sentencepiece: Tokenizer) -> None:
    none = ChatTemplate({}, {})
    assert prompt_ids(CompletionInput(prompt="a"), sentencepiece, none)[0] == 1
    assert prompt_ids(CompletionInput(prompt=""), sentencepiece, none)[:1] == [1]
    with pytest.raises(UnsupportedCapability, match="no chat template"):
        prompt_ids(CompletionInput(chat=_chat(messages=[_user()])), sentencepiece, none)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "input"),
        ({"prompt": ""}, "prompt"),
        ({"token_ids": TokenIds()}, "token_ids.ids"),
        ({"token_ids": TokenIds(ids=[1, 49152])}, "token_ids.ids[1]"),
        ({"token_ids": TokenIds(ids=[2**32 - 1])}, "token_ids.ids[0]"),
        ({"chat": ChatInput()}, "chat.messages"),
        ({"chat": _chat(messages=[_user(), _user("")])}, "chat.messages[1].content"),
        ({"chat": ChatInput(messages=[ChatMessage(content="x")])}, "chat.messages[0].role"),
        (
            {"chat": ChatInput(messages=[ChatMessage(role=ChatRole.ValueType(77), content="x")])},
            "chat.messages[0].role",
        ),
    ],
)
def test_bad_input_names_its_field(
    smollm2: Tokenizer, template: ChatTemplate, fields: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        prompt_ids(StreamCompletionRequest(model="m", **fields), smollm2, template)
    assert _field(raised.value) == field
    with pytest.raises(InvalidRequest) as raised:
        prompt_ids(CompletionInput(**fields), smollm2, template, parent="input.")
    assert _field(raised.value) == f"input.{field}"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_template_options_that_are_no_numbers_are_refused(number: float) -> None:
    chat = _chat(messages=[_user()])
    chat.template_options["budget"] = {"deep": [number]}
    with pytest.raises(InvalidRequest) as raised:
        render_chat(chat, ECHO, "chat")
    assert _field(raised.value) == "chat.template_options"


@pytest.mark.parametrize("text", ["{", "[1]", "1", "[" * 100_000])
def test_json_in_a_chat_names_its_field(text: str) -> None:
    calling = {"role": "CHAT_ROLE_ASSISTANT", "toolCalls": [{"name": "f", "argumentsJson": text}]}
    with pytest.raises(InvalidRequest) as raised:
        render_chat(_chat(messages=[_user(), calling]), ECHO, "chat")
    assert _field(raised.value) == "chat.messages[1].tool_calls[0].arguments_json"
    tools = [{"name": "f"}, {"name": "g", "parametersJsonSchema": text}]
    with pytest.raises(InvalidRequest) as raised:
        render_chat(_chat(messages=[_user()], tools=tools), ECHO, "input.chat")
    assert _field(raised.value) == "input.chat.tools[1].parameters_json_schema"


def test_everything_in_a_chat_reaches_the_template() -> None:
    rendered = render_chat(
        _chat(
            messages=[
                {"role": "CHAT_ROLE_DEVELOPER", "content": "d", "name": "n"},
                {
                    "role": "CHAT_ROLE_ASSISTANT",
                    "reasoning": "r",
                    "toolCalls": [{"id": "1", "name": "f", "argumentsJson": '{"x": 1}'}],
                },
                {"role": "CHAT_ROLE_TOOL", "toolCallId": "1"},
            ],
            tools=[{"name": "f", "description": "d", "parametersJsonSchema": '{"a": 1}'}],
            templateOptions={"enable_thinking": False, "budget": 3},
        ),
        ECHO,
        "chat",
    )
    assert rendered == (
        '[{"type": "function", "function": {"name": "f", "description": "d", '
        '"parameters": {"a": 1}}}] false 3'
        '{"role": "developer", "content": "d", "name": "n"}'
        '{"role": "assistant", "content": "", "reasoning_content": "r", "thinking": "r", '
        '"tool_calls": [{"id": "1", "type": "function", '
        '"function": {"name": "f", "arguments": {"x": 1}}}]}'
        '{"role": "tool", "content": "", "tool_call_id": "1"}True'
    )


def test_tool_choice() -> None:
    options = {"enable_thinking": True, "budget": 1}

    def rendered(**choice: str) -> str:
        chat = _chat(
            messages=[_user()],
            tools=[{"name": "f"}],
            toolChoice=choice,
            templateOptions=options,
        )
        return render_chat(chat, ECHO, "chat")

    assert rendered(mode="MODE_AUTO").startswith('[{"type": "function"')
    assert rendered(mode="MODE_NONE").startswith("null")
    assert rendered(mode="MODE_REQUIRED").startswith('[{"type": "function"')
    assert rendered(mode="MODE_ONE", name="f").startswith('[{"type": "function"')
    with pytest.raises(InvalidRequest) as raised:
        rendered(mode="MODE_ONE")
    assert _field(raised.value) == "chat.tool_choice.name"


def test_a_tools_name_without_a_tool_to_force_is_refused() -> None:
    chat = _chat(messages=[_user()], toolChoice={"mode": "MODE_AUTO", "name": "f"})
    with pytest.raises(InvalidRequest) as raised:
        render_chat(chat, ECHO, "chat")
    assert _field(raised.value) == "chat.tool_choice.name"


# A model that reasons and calls tools, and says so in its prompt.
THINKER = ChatTemplate(
    {
        "default": "{{ tools | tojson }}{{ messages[0].content }}"
        "{% if enable_thinking is not defined or enable_thinking %}<think>\n"
        "{% else %}<think></think>{% endif %}"
    },
    {},
)
KNOWN = ModelMarkup(
    reasoning_start="<think>",
    reasoning_end="</think>",
    call_start="<c>",
    call_end="</c>",
    parser=lambda text, tools: tools,
)
FUNCTION = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
}


def _completion(
    tokenizer: Tokenizer,
    *,
    template: ChatTemplate = THINKER,
    markup: ModelMarkup = KNOWN,
    reasoning: ReasoningOptions | None = None,
    prompt: str | None = None,
    **chat: Any,
) -> tuple[str, Markup]:
    request = StreamCompletionRequest(model="m", reasoning=reasoning)
    if prompt is None:
        request.chat.CopyFrom(_chat(messages=[_user()], **chat))
    else:
        request.prompt = prompt
    made = completion_prompt(request, tokenizer, template, markup)
    return tokenizer.decode(made.ids).decode(), made.markup


def test_what_a_chat_sets_apart(smollm2: Tokenizer) -> None:
    prompt, markup = _completion(smollm2)
    assert prompt == "nullHi<think>\n"
    assert markup.in_reasoning
    assert markup.parse is None
    prompt, markup = _completion(smollm2, tools=[{"name": "f"}])
    assert prompt.startswith('[{"type": "function"')
    assert markup.parse is not None
    assert markup.parse("x") == [FUNCTION]
    none = {"mode": "MODE_NONE"}
    prompt, markup = _completion(smollm2, tools=[{"name": "f"}], toolChoice=none)
    assert prompt.startswith("null")
    assert markup.parse is None
    assert _completion(smollm2, toolChoice={"mode": "MODE_AUTO"})[1].parse is None


def test_what_continues_a_bare_prompt_is_text_unless_reasoning_is_asked_for(
    smollm2: Tokenizer,
) -> None:
    assert _completion(smollm2, prompt="Hm <think>\n") == ("Hm <think>\n", Markup())
    _, markup = _completion(smollm2, prompt="Hm <think>\n", reasoning=ReasoningOptions())
    assert markup.in_reasoning
    assert markup.reasoning_end == "</think>"


def test_reasoning_is_turned_on_and_off(smollm2: Tokenizer) -> None:
    on, off = ReasoningOptions(enabled=True), ReasoningOptions(enabled=False)
    prompt, markup = _completion(smollm2, reasoning=on)
    assert (prompt, markup.in_reasoning) == ("nullHi<think>\n", True)
    prompt, markup = _completion(smollm2, reasoning=off)
    assert (prompt, markup.in_reasoning) == ("nullHi<think></think>", False)
    agreed = _completion(smollm2, reasoning=off, templateOptions={"enable_thinking": False})
    assert agreed[0] == prompt
    for other in (True, "no"):
        with pytest.raises(InvalidRequest) as raised:
            _completion(smollm2, reasoning=off, templateOptions={"enable_thinking": other})
        assert _field(raised.value) == "reasoning.enabled"


def test_reasoning_in_the_text(smollm2: Tokenizer) -> None:
    _, markup = _completion(smollm2, reasoning=ReasoningOptions(in_text=True))
    assert (markup.reasoning_start, markup.in_reasoning) == ("", False)


def test_b9_reasoning_that_a_model_cannot_turn(smollm2: Tokenizer) -> None:
    always = ChatTemplate({"default": "{{ messages[0].content }}"}, {})
    on, off = ReasoningOptions(enabled=True), ReasoningOptions(enabled=False)
    nothing = ModelMarkup()

    def refused(**given: Any) -> str:
        with pytest.raises(UnsupportedParameter) as raised:
            _completion(smollm2, **given)
        return _field(raised.value)

    assert refused(reasoning=on, markup=nothing) == "reasoning.enabled"
    assert refused(reasoning=on, markup=nothing, template=always) == "reasoning.enabled"
    assert refused(reasoning=off, template=always) == "reasoning.enabled"
    assert refused(reasoning=on, prompt="x") == "reasoning.enabled"
    assert refused(reasoning=off, prompt="x") == "reasoning.enabled"
    # What is the case anyway is no request that cannot be honoured.
    assert _completion(smollm2, reasoning=on, template=always)[0] == "Hi"
    assert _completion(smollm2, reasoning=off, markup=nothing, template=always)[0] == "Hi"


def test_b9_tools_that_a_model_does_not_know(smollm2: Tokenizer, template: ChatTemplate) -> None:
    of_models: list[dict[str, Any]] = [{"template": template}, {"markup": ModelMarkup()}]
    for of_model in of_models:
        with pytest.raises(UnsupportedParameter) as raised:
            _completion(smollm2, tools=[{"name": "f"}], **of_model)
        assert _field(raised.value) == "chat.tools"


def test_resumed_tokens() -> None:
    request = StreamCompletionRequest(model="m", resume_token_ids=[3, 0, 9])
    assert resume_ids(request, 10) == ((3, 0, 9),)
    assert resume_ids(StreamCompletionRequest(n=4), 10) == ()
    with pytest.raises(InvalidRequest) as raised:
        resume_ids(request, 9)
    assert _field(raised.value) == "resume_token_ids[2]"
    request.n = 1
    assert resume_ids(request, 10)
    request.n = 2
    with pytest.raises(InvalidRequest) as raised:
        resume_ids(request, 10)
    assert _field(raised.value) == "resume_token_ids"
    assert "use resume_choices" in raised.value.message


def test_resumed_choices() -> None:
    def resumed(*choices: tuple[int, list[int]], n: int = 3, **fields: Any) -> Any:
        sent = [ResumedChoice(index=index, token_ids=ids) for index, ids in choices]
        return resume_ids(StreamCompletionRequest(n=n, resume_choices=sent, **fields), 10)

    assert resumed((2, [5, 6]), (0, [7])) == ((7,), (), (5, 6))
    assert resumed((0, [7]), n=1) == ((7,),)
    for field, choices, fields in (
        ("resume_choices[1].index", [(0, [1]), (3, [1])], {}),
        ("resume_choices[1].index", [(2, [1]), (2, [1])], {}),
        ("resume_choices[0].token_ids[1]", [(0, [1, 10])], {}),
        ("resume_choices", [(0, [1])], {"resume_token_ids": [1], "n": 1}),
    ):
        with pytest.raises(InvalidRequest) as raised:
            resumed(*choices, **fields)  # type: ignore[arg-type]
        assert _field(raised.value) == field
