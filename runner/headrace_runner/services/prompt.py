"""What a request gives as its input, as the tokens that the model computes.

One place for the rule of `input {prompt | chat | token_ids}`, so that a completion, a count and
a rendered chat can never disagree. Encoding may take seconds: call it from a worker thread.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct, Value

from headrace.errors import UnsupportedParameter
from headrace.v1.completion_pb2 import (
    ChatInput,
    ChatMessage,
    ChatRole,
    CompletionInput,
    StreamCompletionRequest,
    Tool,
    ToolCall,
    ToolChoice,
)
from headrace_runner.models.chat import ChatTemplate, invalid_field
from headrace_runner.models.markup import Markup, ModelMarkup, thinking_option
from headrace_runner.models.tokenizer import Tokenizer

HasInput: TypeAlias = StreamCompletionRequest | CompletionInput

_ROLES = {
    ChatRole.CHAT_ROLE_SYSTEM: "system",
    ChatRole.CHAT_ROLE_USER: "user",
    ChatRole.CHAT_ROLE_ASSISTANT: "assistant",
    ChatRole.CHAT_ROLE_TOOL: "tool",
    ChatRole.CHAT_ROLE_DEVELOPER: "developer",
}

_PROMPT_END = 16
"""Tokens in which a marker at the end of a prompt is sure to be."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The tokens of a completion's prompt, and what to set apart in its output."""

    ids: list[int]
    markup: Markup
    in_reasoning: bool = False
    """Whether it has opened the reasoning, be it set apart or not."""


def completion_prompt(
    request: StreamCompletionRequest,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    markup: ModelMarkup,
) -> Prompt:
    """Give the prompt of a completion.

    What continues a bare prompt is all text, unless `reasoning` is given. Raises what `prompt_ids`
    raises, and UnsupportedParameter for tools and reasoning that the model does not know.
    """
    ids = prompt_ids(
        request, tokenizer, template, template_options=_reasoning_option(request, template, markup)
    )
    is_chat = request.HasField("chat")
    if not is_chat and not request.HasField("reasoning"):
        return Prompt(ids, Markup())
    tools = _tools(request.chat, "chat") or None
    if tools and not markup.calls_tools:
        raise UnsupportedParameter(
            "the form of this model's tool calls is not known; leave them out, and describe the "
            "tools in a message",
            field="chat.tools",
        )
    end = tokenizer.decode(ids[-_PROMPT_END:]).decode(errors="replace")
    apart = not request.reasoning.in_text
    own = markup.of_request(tools=tools, reasoning_apart=apart, prompt_end=end)
    return Prompt(ids, own, markup.opened_by(end))


def prompt_ids(
    request: HasInput,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    parent: str = "",
    template_options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Give the tokens of a request's input, at least one.

    `parent` is the path of the message that holds the input, ending in a dot; "" for a request.
    `template_options` go to a chat's template beside the chat's own.
    Raises InvalidRequest, UnsupportedParameter or UnsupportedCapability naming the field.
    """
    match request.WhichOneof("input"):
        case "prompt":
            ids = tokenizer.encode(request.prompt, add_special=True)
            if not ids:
                raise invalid_field(
                    f"{parent}prompt", "must not be empty: this model adds no token of its own"
                )
            return ids
        case "chat":
            prompt = render_chat(request.chat, template, f"{parent}chat", template_options)
            ids = chat_ids(prompt, tokenizer)
            if not ids:
                raise invalid_field(f"{parent}chat.messages", "must not make an empty prompt")
            return ids
        case "token_ids":
            ids = list(request.token_ids.ids)
            if not ids:
                raise invalid_field(f"{parent}token_ids.ids", "must have at least one token")
            check_ids(ids, tokenizer, f"{parent}token_ids.ids")
            return ids
        case _:
            raise invalid_field(f"{parent}input", "must be one of prompt, chat or token_ids")


def chat_ids(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """Give the tokens of a rendered chat, whose template wrote every special token out."""
    return tokenizer.encode(prompt, add_special=False)


def check_ids(ids: Sequence[int], tokenizer: Tokenizer, field: str) -> None:
    """Raise InvalidRequest naming the first id that is outside the vocabulary."""
    if ids and max(ids) >= tokenizer.vocab_size:
        index = next(i for i, token in enumerate(ids) if token >= tokenizer.vocab_size)
        raise invalid_field(
            f"{field}[{index}]",
            f"must be below {tokenizer.vocab_size}, the size of the vocabulary; is {ids[index]}",
        )


def render_chat(
    chat: ChatInput,
    template: ChatTemplate,
    field: str,
    template_options: Mapping[str, Any] | None = None,
) -> str:
    """Put a conversation into the model's template; `field` is its path, for errors.

    `template_options` stand beside the chat's own and go before them.
    """
    if not chat.messages:
        raise invalid_field(f"{field}.messages", "must have at least one message")
    options = _options(chat.template_options, f"{field}.template_options")
    return template.render(
        [_message(m, f"{field}.messages[{i}]") for i, m in enumerate(chat.messages)],
        tools=_tools(chat, field),
        template_options=options | dict(template_options or {}),
        add_generation_prompt=(
            chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True
        ),
        field=field,
    )


def _reasoning_option(
    request: StreamCompletionRequest, template: ChatTemplate, markup: ModelMarkup
) -> dict[str, bool]:
    """Give the template's own variable for `reasoning.enabled`, where that says anything new."""
    if not request.reasoning.HasField("enabled"):
        return {}
    wanted, field = request.reasoning.enabled, "reasoning.enabled"
    if not request.HasField("chat"):
        raise UnsupportedParameter("only a chat can be told; leave it out", field=field)
    if wanted and not markup.reasons:
        raise UnsupportedParameter("this model's reasoning is not known; leave it out", field=field)
    option = thinking_option(template)
    if option is None:
        if markup.reasons and not wanted:
            raise UnsupportedParameter(
                "the model's chat template cannot turn its reasoning off; leave it out", field=field
            )
        return {}
    given = request.chat.template_options.fields
    if option in given and given[option] != Value(bool_value=wanted):
        raise invalid_field(field, f"contradicts chat.template_options.{option}")
    return {option: wanted}


def _tools(chat: ChatInput, field: str) -> list[dict[str, Any]]:
    """Give the tools that the model is offered."""
    if not _offers_tools(chat, field):
        return []
    return [_tool(tool, f"{field}.tools[{i}]") for i, tool in enumerate(chat.tools)]


def _offers_tools(chat: ChatInput, field: str) -> bool:
    one = chat.tool_choice.mode == ToolChoice.MODE_ONE
    if one and not chat.tool_choice.name:
        raise invalid_field(f"{field}.tool_choice.name", "is required with MODE_ONE")
    if not one and chat.tool_choice.HasField("name"):
        raise invalid_field(f"{field}.tool_choice.name", "goes with MODE_ONE only; leave it out")
    return chat.tool_choice.mode != ToolChoice.MODE_NONE


def _message(message: ChatMessage, field: str) -> dict[str, Any]:
    role = _ROLES.get(message.role)
    if role is None:
        raise invalid_field(f"{field}.role", f"must be one of {', '.join(_ROLES.values())}")
    if role == "user" and not message.content:
        raise invalid_field(f"{field}.content", "must not be empty in a user's message")
    found: dict[str, Any] = {"role": role, "content": message.content}
    if message.HasField("name"):
        found["name"] = message.name
    if message.HasField("reasoning"):
        # `thinking` is what the templates of gpt-oss read.
        found["reasoning_content"] = found["thinking"] = message.reasoning
    if message.tool_calls:
        found["tool_calls"] = [
            _tool_call(call, f"{field}.tool_calls[{i}]")
            for i, call in enumerate(message.tool_calls)
        ]
    if message.HasField("tool_call_id"):
        found["tool_call_id"] = message.tool_call_id
    return found


def _tool_call(call: ToolCall, field: str) -> dict[str, Any]:
    arguments = _json_object(call.arguments_json or "{}", f"{field}.arguments_json")
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def _tool(tool: Tool, field: str) -> dict[str, Any]:
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    if tool.HasField("parameters_json_schema"):
        parameters = _json_object(tool.parameters_json_schema, f"{field}.parameters_json_schema")
    function: dict[str, Any] = {"name": tool.name}
    if tool.HasField("description"):
        function["description"] = tool.description
    return {"type": "function", "function": function | {"parameters": parameters}}


def _json_object(text: str, field: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid_field(field, "must be a JSON object") from error
    if not isinstance(value, dict):
        raise invalid_field(field, "must be a JSON object")
    return value


def _options(options: Struct, field: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = _whole_numbers(MessageToDict(options))
    except ValueError as error:
        raise invalid_field(field, "must hold no NaN or infinity") from error
    return found


def _whole_numbers(value: Any) -> Any:
    """Undo Struct's one number type: a template that counts needs integers."""
    match value:
        case dict():
            return {key: _whole_numbers(item) for key, item in value.items()}
        case list():
            return [_whole_numbers(item) for item in value]
        case float() if value.is_integer():
            return int(value)
    return value
