"""Builds the messages of requests out of Python arguments, for both clients alike.

What Protobuf cannot carry is refused here, before anything is sent, as an InvalidRequest that
names the field by its path in the request. The rules of the contract beyond that are the
server's to check: they are not repeated here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as ProtoMessage

from headrace.errors import FieldViolation, InvalidRequest
from headrace.types import (
    ChatMessage,
    CompletionOptions,
    Continuation,
    HasJsonSchema,
    Message,
    ScoreOptions,
    Tool,
    ToolCall,
)
from headrace.v1 import completion_pb2, score_pb2

_KINDS = {
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_BOOL: "true or false",
    FieldDescriptor.TYPE_FLOAT: "a number",
    FieldDescriptor.TYPE_INT32: "a whole number from -2^31 to 2^31 - 1",
    FieldDescriptor.TYPE_UINT32: "a whole number from 0 to 2^32 - 1",
    FieldDescriptor.TYPE_INT64: "a whole number from -2^63 to 2^63 - 1",
}
_ROLES = {
    name.removeprefix("CHAT_ROLE_").lower(): number
    for name, number in completion_pb2.ChatRole.items()
    if number
}
_TOOL_CHOICES = {
    "auto": completion_pb2.ToolChoice.MODE_AUTO,
    "none": completion_pb2.ToolChoice.MODE_NONE,
    "required": completion_pb2.ToolChoice.MODE_REQUIRED,
}
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "penalty_window",
    "seed",
)
_CONSTRAINTS = ("json_schema", "regex", "lark_grammar", "choices")
_OPTIONS = CompletionOptions.__annotations__.keys()
_CHAT_OPTIONS = ("template_options", "add_generation_prompt", "tools", "tool_choice")
_LONGEST_DURATION = 315_576_000_000  # seconds: the limit of google.protobuf.Duration


def invalid(field: str, description: str) -> InvalidRequest:
    """An InvalidRequest for one field of the request."""
    return InvalidRequest(
        f"{field}: {description}", violations=(FieldViolation(field, description),)
    )


def put(message: ProtoMessage, field: str, value: object, *, path: str | None = None) -> None:
    """Sets a scalar field unless the value is None, which stands for "not said"."""
    if value is None:
        return
    try:
        setattr(message, field, value)
    except (TypeError, ValueError) as error:
        raise _refused(message, field, value, path or field, error) from None


def put_all(message: ProtoMessage, field: str, values: Iterable[Any], *, path: str) -> None:
    """Fills a repeated scalar field; an error names the entry that is at fault."""
    try:
        entries = list(values)
    except TypeError:
        raise invalid(path, f"must be a sequence, not {type(values).__name__}") from None
    try:
        getattr(message, field).extend(entries)
    except (TypeError, ValueError):
        # Only now is it worth finding out which one it was.
        scratch = getattr(type(message)(), field)
        for index, entry in enumerate(entries):
            try:
                scratch.append(entry)
            except (TypeError, ValueError) as error:
                raise _refused(message, field, entry, f"{path}[{index}]", error) from None
        raise


def put_keep_alive(request: Any, value: float | timedelta | None) -> None:
    """Sets how long a model stays afterwards, in seconds or as a timedelta; None leaves it out."""
    if value is None:
        return
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not _is_number(seconds):
        what = f"must be seconds or a timedelta, not {type(value).__name__}"
        raise invalid("keep_alive", what)
    if not abs(seconds) <= _LONGEST_DURATION:
        raise invalid("keep_alive", f"must be a finite number of seconds, not {seconds}")
    request.keep_alive.FromNanoseconds(round(seconds * 1e9))


def put_sequences(field: Any, given: Iterable[str | Iterable[int]], *, path: str) -> None:
    """Fills a repeated field whose entries are a text or token ids."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise invalid(path, "must be a sequence of texts: put a single one in a list")
    for index, one in enumerate(given):
        place, target = f"{path}[{index}]", field.add()
        if isinstance(one, str):
            put(target, "text", one, path=f"{place}.text")
        else:
            # Also where there are none: it is tokens all the same.
            target.token_ids.SetInParent()
            put_all(target.token_ids, "ids", one, path=f"{place}.token_ids.ids")


def deadline(timeout: float | None, default: float | None) -> float | None:
    """The deadline of a call in seconds from now; None for none.

    Raises:
        InvalidRequest: the timeout is negative or not a number.
    """
    chosen = default if timeout is None else timeout
    if chosen is None or chosen == math.inf:
        return None
    if not _is_number(chosen) or not chosen >= 0:
        raise invalid("timeout", f"must be seconds from 0, not {chosen!r}")
    return chosen


def chat(
    messages: Sequence[ChatMessage],
    template_options: Mapping[str, Any] | None = None,
    add_generation_prompt: bool | None = None,
    tools: Sequence[Tool | Mapping[str, Any]] | None = None,
    tool_choice: str | None = None,
) -> completion_pb2.ChatInput:
    """A conversation; roles are given by name."""
    result = completion_pb2.ChatInput()
    if isinstance(messages, Message | Mapping | str | bytes):
        raise invalid("chat.messages", "must be a sequence of messages")
    for index, message in enumerate(messages):
        _message(result.messages.add(), message, f"chat.messages[{index}]")
    if template_options is not None:
        try:
            result.template_options.update(dict(template_options))
        except (TypeError, ValueError) as error:
            raise invalid("chat.template_options", f"must be plain JSON values: {error}") from None
    put(result, "add_generation_prompt", add_generation_prompt, path="chat.add_generation_prompt")
    _tools(result, tools, tool_choice)
    return result


def fill_input(
    target: completion_pb2.StreamCompletionRequest | completion_pb2.CompletionInput,
    prompt: str | None,
    messages: Sequence[ChatMessage] | None,
    token_ids: Iterable[int] | None,
    template_options: Mapping[str, Any] | None = None,
    add_generation_prompt: bool | None = None,
    tools: Sequence[Tool | Mapping[str, Any]] | None = None,
    tool_choice: str | None = None,
) -> None:
    """Sets what the prompt is made of: exactly one of the three inputs."""
    given = [value is not None for value in (prompt, messages, token_ids)]
    if sum(given) != 1:
        raise invalid("input", "exactly one of prompt, messages and token_ids is required")
    if messages is not None:
        made = chat(messages, template_options, add_generation_prompt, tools, tool_choice)
        target.chat.CopyFrom(made)
        return
    options = (template_options, add_generation_prompt, tools, tool_choice)
    for name, value in zip(_CHAT_OPTIONS, options, strict=True):
        if value is not None:
            raise invalid(f"chat.{name}", "belongs to a chat: give messages")
    put(target, "prompt", prompt)
    if token_ids is not None:
        target.token_ids.SetInParent()
        put_all(target.token_ids, "ids", token_ids, path="token_ids.ids")


def completion(
    model: str,
    prompt: str | None,
    messages: Sequence[ChatMessage] | None,
    token_ids: Iterable[int] | None,
    options: CompletionOptions,
) -> completion_pb2.StreamCompletionRequest:
    """A request for a completion."""
    for name in options.keys() - _OPTIONS:
        raise TypeError(f"unexpected keyword argument {name!r}")
    request = completion_pb2.StreamCompletionRequest()
    put(request, "model", model)
    fill_input(
        request,
        prompt,
        messages,
        token_ids,
        options.get("template_options"),
        options.get("add_generation_prompt"),
        options.get("tools"),
        options.get("tool_choice"),
    )
    for name in ("request_id", "max_tokens", "priority", "adapter"):
        put(request, name, options.get(name))
    for name in _SAMPLING:
        put(request.sampling, name, options.get(name), path=f"sampling.{name}")
    _logit_bias(request.sampling, options.get("logit_bias"))
    _stop(request.stop, options)
    _logprobs(request.logprobs, options.get("logprobs"))
    _constraint(request, options)
    put(
        request.reasoning,
        "max_tokens",
        options.get("reasoning_max_tokens"),
        path="reasoning.max_tokens",
    )
    put_keep_alive(request, options.get("keep_alive"))
    return request


def score(
    model: str,
    prompt: str | None,
    continuations: Iterable[Continuation],
    messages: Sequence[ChatMessage] | None,
    token_ids: Iterable[int] | None,
    options: ScoreOptions,
) -> score_pb2.ScoreRequest:
    """A request to score."""
    for name in options.keys() - ScoreOptions.__annotations__.keys():
        raise TypeError(f"unexpected keyword argument {name!r}")
    request = score_pb2.ScoreRequest()
    put(request, "model", model)
    fill_input(
        request.input,
        prompt,
        messages,
        token_ids,
        options.get("template_options"),
        options.get("add_generation_prompt"),
    )
    put_sequences(request.continuations, continuations, path="continuations")
    _logprobs(request.logprobs, options.get("logprobs"))
    put(request, "priority", options.get("priority"))
    put(request, "adapter", options.get("adapter"))
    put_keep_alive(request, options.get("keep_alive"))
    return request


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _message(target: completion_pb2.ChatMessage, message: ChatMessage, path: str) -> None:
    fields = _fields(message, Message, "message", path)
    role = fields.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{path}.role", f"must be one of {', '.join(_ROLES)}, not {role!r}")
    put(target, "role", _ROLES[role])
    calls = fields.get("tool_calls") or ()
    if fields.get("content") is None and not calls:
        raise invalid(f"{path}.content", "is required")
    for name in ("content", "name", "reasoning", "tool_call_id"):
        put(target, name, fields.get(name), path=f"{path}.{name}")
    for index, call in enumerate(_entries(calls, f"{path}.tool_calls")):
        place = f"{path}.tool_calls[{index}]"
        given, made = _fields(call, ToolCall, "tool call", place), target.tool_calls.add()
        for name in ("id", "name", "arguments_json"):
            put(made, name, given.get(name), path=f"{place}.{name}")


def _tools(
    target: completion_pb2.ChatInput,
    tools: Sequence[Tool | Mapping[str, Any]] | None,
    choice: str | None,
) -> None:
    for index, tool in enumerate(_entries(tools or (), "chat.tools")):
        path = f"chat.tools[{index}]"
        given, made = _fields(tool, Tool, "tool", path), target.tools.add()
        for name in ("name", "description", "strict"):
            put(made, name, given.get(name), path=f"{path}.{name}")
        if (schema := given.get("parameters")) is not None:
            text = _schema(schema, f"{path}.parameters")
            put(made, "parameters_json_schema", text, path=f"{path}.parameters")
    if choice is None:
        return
    if not isinstance(choice, str):
        raise invalid("chat.tool_choice", f"must be a text, not {type(choice).__name__}")
    target.tool_choice.mode = _TOOL_CHOICES.get(choice, completion_pb2.ToolChoice.MODE_ONE)
    if choice not in _TOOL_CHOICES:
        put(target.tool_choice, "name", choice, path="chat.tool_choice.name")


def _entries(values: object, path: str) -> Sequence[object]:
    if isinstance(values, Mapping | str | bytes) or not isinstance(values, Iterable):
        raise invalid(path, f"must be a sequence, not {type(values).__name__}")
    return list(values)


def _fields(value: object, kind: type, what: str, path: str) -> Mapping[str, Any]:
    """What a value of ours, or a mapping with its fields, gives."""
    known = [field.name for field in dataclasses.fields(kind)]
    if isinstance(value, kind):
        return {name: getattr(value, name) for name in known}
    if not isinstance(value, Mapping):
        got = type(value).__name__
        raise invalid(path, f"must be a {kind.__name__} or a mapping, not {got}")
    for name in value.keys() - set(known):
        raise invalid(f"{path}.{name}", f"is no field of a {what}")
    return value


def _logit_bias(sampling: completion_pb2.SamplingOptions, bias: Mapping[int, float] | None) -> None:
    for token_id, value in (bias or {}).items():
        try:
            sampling.logit_bias[token_id] = value
        except (TypeError, ValueError):
            raise invalid(
                f"sampling.logit_bias[{token_id!r}]",
                f"must map a token id from 0 to a number, not {value!r}",
            ) from None


def _stop(stop: completion_pb2.StopOptions, options: CompletionOptions) -> None:
    strings = options.get("stop")
    if strings is not None:
        strings = [strings] if isinstance(strings, str) else strings
        put_all(stop, "strings", strings, path="stop.strings")
    token_ids = options.get("stop_token_ids")
    if token_ids is not None:
        put_all(stop, "token_ids", token_ids, path="stop.token_ids")
    for name in ("ignore_eos", "include_stop"):
        put(stop, name, options.get(name), path=f"stop.{name}")


def _logprobs(logprobs: completion_pb2.LogprobsOptions, wanted: bool | int | None) -> None:
    if wanted is None or wanted is False:
        return
    logprobs.enabled = True
    if wanted is not True:
        put(logprobs, "top", wanted, path="logprobs.top")


def _constraint(
    request: completion_pb2.StreamCompletionRequest, options: CompletionOptions
) -> None:
    given = [name for name in _CONSTRAINTS if options.get(name) is not None]
    if len(given) > 1:
        raise invalid(given[1], f"does not go with {given[0]}: give one of them")
    schema, choices = options.get("json_schema"), options.get("choices")
    if schema is not None:
        put(request, "json_schema", _schema(schema, "json_schema"))
    elif choices is not None:
        words = [choices] if isinstance(choices, str) else choices
        put_all(request.choices, "values", words, path="choices.values")
        request.choices.SetInParent()  # For the server to say that there is none.
    for name in ("regex", "lark_grammar"):
        put(request, name, options.get(name))


def _schema(schema: str | Mapping[str, Any] | HasJsonSchema, path: str) -> str:
    if isinstance(schema, str):
        return schema
    if not isinstance(schema, Mapping):
        describe = getattr(schema, "model_json_schema", None)
        if describe is None:
            kind = type(schema).__name__
            raise invalid(path, f"must be text, a mapping or a class with one, not {kind}")
        schema = describe()
    try:
        return json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise invalid(path, f"must be plain JSON values: {error}") from None


def _refused(
    message: ProtoMessage, field: str, value: object, path: str, error: Exception
) -> InvalidRequest:
    if isinstance(error, UnicodeEncodeError):
        place = f"U+{ord(error.object[error.start]):04X} at position {error.start}"
        return invalid(path, f"must be text that has a UTF-8 form: {place} is a lone surrogate")
    kind = _KINDS[message.DESCRIPTOR.fields_by_name[field].type]
    shown = repr(value)
    shown = shown if len(shown) <= 64 else f"{shown[:61]}..."
    return invalid(path, f"must be {kind}, not {shown}")
