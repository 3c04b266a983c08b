"""What a completion is asked for with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol, TypedDict

from headrace.types.completion import ToolCall

Role = Literal["system", "user", "assistant", "tool", "developer"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: Role
    """Who wrote it. A role that the model's template does not know is an error."""

    content: str
    """The text."""

    name: str | None = None
    """Name of the author, for templates that use it."""

    reasoning: str | None = None
    """The assistant's reasoning that led to the content, for templates that use it."""

    tool_calls: Sequence[ToolCall | Mapping[str, str]] = ()
    """Tools that the assistant asked for. They have to be complete."""

    tool_call_id: str | None = None
    """For the role "tool": the id of the call that this answers."""


ChatMessage = Message | Mapping[str, Any]
"""A message as calls take it: a `Message`, or a mapping with its fields."""


class HasJsonSchema(Protocol):
    """A class that describes its JSON form, such as a model of pydantic."""

    def model_json_schema(self) -> dict[str, Any]:
        """The JSON Schema."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask to have called."""

    name: str
    """Name of the function."""

    description: str | None = None
    """What it does, for the model to decide by."""

    parameters: str | Mapping[str, Any] | HasJsonSchema | None = None
    """JSON Schema of the arguments, an object: as text, as a mapping, or as a class that has one.
    None: it takes none."""

    strict: bool | None = None
    """Whether the arguments are held to the schema where the model chooses to call it."""


class CompletionOptions(TypedDict, total=False):
    """How a completion is drawn and where it ends: keyword arguments of the completion calls.

    What is absent or None is left to the server's default.
    """

    temperature: float | None
    """Divides the logits; 0 takes the likeliest token. 0 to 10, default 1."""

    top_p: float | None
    """Keeps the likeliest tokens whose probabilities add up to this. Above 0, up to 1."""

    top_k: int | None
    """Keeps this many of the likeliest tokens. 0: all."""

    min_p: float | None
    """Keeps the tokens at least this many times as likely as the likeliest. 0 to 1."""

    repetition_penalty: float | None
    """Divides the positive logits of tokens seen lately. Above 0, up to 10."""

    presence_penalty: float | None
    """Subtracted from the logit of each token seen lately. -10 to 10."""

    frequency_penalty: float | None
    """Subtracted from a token's logit for each time it was seen lately. -10 to 10."""

    penalty_window: int | None
    """How many of the last tokens the penalties look at. 1 to 8192, default 64."""

    logit_bias: Mapping[int, float] | None
    """Added to the logits of single tokens, by id. -1000 to 1000."""

    seed: int | None
    """Fixes the draws. 0 to 2^63 - 1; absent: one is chosen and reported."""

    max_tokens: int | None
    """Tokens to generate at most. Absent: up to the context's end."""

    stop: str | Sequence[str] | None
    """Texts that end the output; they are not part of it unless `include_stop`."""

    json_schema: str | Mapping[str, Any] | HasJsonSchema | None
    """JSON Schema of the output: as text, as a mapping, or as a class that has one. Of this,
    `regex`, `lark_grammar` and `choices` one can be given."""

    regex: str | None
    """Regular expression that the whole output matches."""

    lark_grammar: str | None
    """Grammar of the output, in Lark's notation."""

    choices: Sequence[str] | None
    """The only outputs there may be."""

    tools: Sequence[Tool | Mapping[str, Any]] | None
    """Tools that the model of a chat may call: a `Tool` each, or a mapping with its fields."""

    tool_choice: str | None
    """Whether one is called: "auto", "none", "required", or the name of the one that is."""

    reasoning_max_tokens: int | None
    """Tokens after which reasoning is ended. Absent: no limit."""

    stop_token_ids: Sequence[int] | None
    """Tokens that end the output."""

    ignore_eos: bool | None
    """Whether to go on past the model's end-of-text tokens."""

    include_stop: bool | None
    """Whether the text that stopped the output is part of it."""

    logprobs: bool | int | None
    """True: the log-probability of each token. A number: of that many likeliest others too."""

    template_options: Mapping[str, Any] | None
    """Variables for the model's chat template, such as `enable_thinking`."""

    add_generation_prompt: bool | None
    """Whether a chat's prompt ends with the opening of an assistant's turn. Default true."""

    keep_alive: float | timedelta | None
    """How long the model stays loaded afterwards, in seconds. Negative: until unloaded."""

    adapter: str | None
    """Name of an adapter (LoRA) of the model to apply. "": none. Absent: the one that the
    controller's settings name, if they do."""

    priority: int | None
    """Requests of a higher priority go first where there is a queue. -100 to 100."""

    request_id: str | None
    """The caller's name for the request. Up to 128 printable ASCII characters."""
