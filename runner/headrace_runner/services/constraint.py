"""What a completion's output is held to: its grammar, and its budget for reasoning. Pure."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from headrace.errors import FieldViolation, InvalidRequest, UnsupportedParameter
from headrace.v1.completion_pb2 import StreamCompletionRequest, Tool, ToolChoice
from headrace_runner.engine.text.guide import Guidance, Stretch
from headrace_runner.models.grammar import Grammar, GrammarError, Grammars
from headrace_runner.models.markup import ModelMarkup
from headrace_runner.models.tokenizer import Tokenizer
from headrace_runner.services.prompt import Prompt


def guidance_of(
    request: StreamCompletionRequest,
    prompt: Prompt,
    tokenizer: Tokenizer,
    markup: ModelMarkup,
    grammars: Grammars,
) -> Guidance | None:
    """What guides the choices of a request; None where they are free.

    Raises InvalidRequest for a grammar that is wrong, naming the place, and UnsupportedParameter
    for what cannot be done with this model.
    """
    grammar = _grammar(request, grammars)
    body, must_call = _body_of_calls(request, prompt, markup, grammars)
    budget = request.reasoning.max_tokens if request.reasoning.HasField("max_tokens") else None
    if grammar is None and budget is None and body is None:
        return None
    reasoning = calls = None
    if markup.reasons and (request.HasField("chat") or request.HasField("reasoning")):
        reasoning = Stretch.between(tokenizer, markup.reasoning_start, markup.reasoning_end)
    if budget is not None:
        _check_budget(reasoning, prompt)
    if prompt.markup.parse is not None:
        calls = Stretch.between(tokenizer, markup.call_start, markup.call_end, body)
        if calls.start is None and (grammar is not None or body is not None):
            raise UnsupportedParameter(
                "the beginning of this model's tool calls is no token of its own, so that it cannot"
                " be told from an answer; leave it out, or the tools",
                field=str(request.WhichOneof("constraint") or "chat.tool_choice.mode"),
            )
    return Guidance(
        tokenizer,
        grammar,
        reasoning,
        prompt.in_reasoning,
        budget,
        calls,
        must_call=must_call,
        field=request.WhichOneof("constraint") or "chat.tools",
    )


def _body_of_calls(
    request: StreamCompletionRequest, prompt: Prompt, markup: ModelMarkup, grammars: Grammars
) -> tuple[Grammar | None, bool]:
    """What a call of a tool has to be, if it is held to anything, and whether there has to be one.

    Raises InvalidRequest for a tool that is not there, or whose schema is wrong.
    """
    choice, tools = request.chat.tool_choice, request.chat.tools
    must_call = choice.mode in (ToolChoice.MODE_REQUIRED, ToolChoice.MODE_ONE)
    if prompt.markup.parse is None:
        if must_call:
            _refuse("chat.tools", "must have a tool, for one to be called")
        return None, False
    if not must_call and not any(tool.strict for tool in tools):
        return None, False
    strict = next((i for i, tool in enumerate(tools) if tool.strict), 0)
    field = "chat.tool_choice.mode" if must_call else f"chat.tools[{strict}].strict"
    if not markup.json_calls:
        raise UnsupportedParameter(
            "the tool calls of this model are no JSON that could be held to a form; leave it out",
            field=field,
        )
    if must_call and request.stop.ignore_eos:
        _refuse("stop.ignore_eos", f"does not go with {field}: after a call comes the end")
    if must_call and request.WhichOneof("constraint") is not None:
        _refuse(field, f"does not go with {request.WhichOneof('constraint')}; give one of them")
    wanted = {
        tool.name: _arguments(tool, must_call=must_call)
        for tool in tools
        if choice.mode != ToolChoice.MODE_ONE or tool.name == choice.name
    }
    if not wanted:
        known = ", ".join(tool.name for tool in tools)
        _refuse("chat.tool_choice.name", f"must be a tool of the request: {known}")
    try:
        return grammars.calls(wanted), must_call
    except GrammarError as error:
        _refuse("chat.tools", f"the schema {error}")


def _arguments(tool: Tool, *, must_call: bool) -> dict[str, Any]:
    """The schema that a tool's arguments are held to."""
    if not tool.strict and not must_call:
        return {"type": "object"}
    schema: dict[str, Any] = {"type": "object", "additionalProperties": False}
    return json.loads(tool.parameters_json_schema) if tool.parameters_json_schema else schema


def _refuse(field: str, rule: str) -> NoReturn:
    raise InvalidRequest(violations=[FieldViolation(field, rule)])


def _grammar(request: StreamCompletionRequest, grammars: Grammars) -> Grammar | None:
    kind = request.WhichOneof("constraint")
    if kind is None:
        return None
    if request.stop.ignore_eos:
        rule = f"does not go with {kind}, whose end is the model's own; leave it out"
        _refuse("stop.ignore_eos", rule)
    text = list(request.choices.values) if kind == "choices" else getattr(request, kind)
    try:
        return grammars.compile(kind, text)
    except GrammarError as error:
        _refuse(kind, str(error))


def _check_budget(reasoning: Stretch | None, prompt: Prompt) -> None:
    if reasoning is None:
        raise UnsupportedParameter(
            "this model's reasoning is not known; leave it out", field="reasoning.max_tokens"
        )
    if reasoning.start is None and not prompt.in_reasoning:
        raise UnsupportedParameter(
            "the beginning of this model's reasoning cannot be told; leave it out",
            field="reasoning.max_tokens",
        )
