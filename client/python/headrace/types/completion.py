"""The events of a completion, and the whole that they make."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn


class FinishReason(StrEnum):
    """Why an output ended."""

    END_OF_TEXT = "end_of_text"
    """The model ended its text."""

    STOP = "stop"
    """A stop string or stop token of the request came."""

    LENGTH = "length"
    """`max_tokens` or the end of the context was reached."""

    TOOL_CALLS = "tool_calls"
    """The model asks for tools to be called."""

    UNKNOWN = "unknown"
    """A reason that this version of the SDK does not know."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of a token at its position, before bias, penalties and temperature."""

    token_id: int
    """The token."""

    logprob: float
    """Natural logarithm of its probability."""

    piece: bytes
    """The token's bytes. They need not be whole UTF-8."""

    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens at this position, likeliest first."""


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A piece of a tool call. The first of a call has its id and name."""

    index: int
    """Which call of the output, from 0."""

    arguments_json: str
    """Text to append to the arguments' JSON."""

    id: str | None = None
    """Id that ties the call to its result. None but in the first part."""

    name: str | None = None
    """Name of the tool. None but in the first part."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, as far as it was written."""

    id: str
    """Id that ties the call to its result."""

    name: str
    """Name of the tool."""

    arguments_json: str = "{}"
    """The arguments as the model wrote them. JSON, if the call is complete."""

    @property
    def complete(self) -> bool:
        """Whether the arguments are a JSON object. They are not where the output ended in the
        midst of the call, or the model wrote something else."""
        return self._read() is not None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments. Raises ValueError where the call is not complete."""
        found = self._read()
        if found is None:
            raise ValueError(f"the call of {self.name} is not complete: {self.arguments_json}")
        return found

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.arguments_json, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one request."""

    prompt_tokens: int
    """Tokens in the prompt, after the chat template and special tokens."""

    cached_tokens: int
    """Prompt tokens that came out of the prefix cache."""

    output_tokens: int
    """Tokens generated, a final end-of-text token included."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one request went, in seconds, as measured by the services."""

    queue: float
    """Waiting for a place."""

    load: float
    """Waiting for the model to be loaded. 0 when it was already there."""

    prefill: float
    """From the start of the prompt's computation to the first token."""

    decode: float
    """From the first token to the last."""

    total: float
    """From the arrival of the request to its end."""


@dataclass(frozen=True, slots=True)
class Started:
    """Generation begins. Comes exactly once."""

    id: str
    """The request's id: the caller's, or the one that was made for it."""

    model: str
    """Name of the model, as asked for."""

    digest: str
    """Digest of the model that serves the request."""

    runner: str
    """Id of the runner that serves the request."""

    prompt_tokens: int
    """Tokens in the prompt."""

    cached_tokens: int
    """Prompt tokens that came out of the prefix cache."""

    seed: int
    """The seed in use: the caller's, or the one that was chosen."""

    adapter: str = ""
    """Name of the adapter that is applied. Empty: none."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How the wait goes. What is not known is None."""

    queue_position: int | None = None
    """Requests that are ahead in the queue."""

    load_fraction: float | None = None
    """How much of the model is loaded, 0 to 1."""

    prompt_tokens_done: int | None = None
    """Prompt tokens computed so far, cached ones included."""

    prompt_tokens_total: int | None = None
    """Prompt tokens in all."""


@dataclass(frozen=True, slots=True)
class Delta:
    """More output. The texts of all deltas, joined, are the whole output."""

    text: str
    """Text to append. Whole characters only; may be empty."""

    reasoning: str
    """Reasoning to append."""

    token_ids: tuple[int, ...]
    """The tokens behind this delta. Their text may come in a later one."""

    logprobs: tuple[TokenLogprob, ...]
    """One entry for each token, when log-probabilities were asked for."""

    output_tokens: int
    """Output tokens so far, these included."""

    tool_calls: tuple[ToolCallPart, ...] = ()
    """Parts of tool calls, in order."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The end of a stream. Comes exactly once, and last."""

    finish_reason: FinishReason
    """Why the output ended."""

    matched: str | int | None
    """What stopped it: the stop string, or the id of the stop or end-of-text token."""

    usage: Usage
    """Tokens of the request."""

    timings: Timings
    """Where the time went."""

    resumed: int
    """How many times the stream moved to another runner."""


CompletionEvent = Started | Progress | Delta | Completed
"""One event of a completion."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole completion, put together from its stream."""

    text: str
    """The whole output."""

    reasoning: str
    """The whole reasoning, where the model's is kept apart."""

    token_ids: tuple[int, ...]
    """The output as tokens."""

    logprobs: tuple[TokenLogprob, ...]
    """One entry for each token, when log-probabilities were asked for."""

    started: Started
    """What served the request, and with which seed."""

    completed: Completed
    """How it ended."""

    time_to_first_token: float | None
    """Seconds from the call to its first token, as the client saw it. None without a token."""

    trace_id: str
    """The trace of this call: 32 hexadecimal digits, to look for in logs and traces."""

    tool_calls: tuple[ToolCall, ...] = ()
    """The tools that the model asks for. The last one may not be `complete`, if the output was cut.
    """

    @property
    def finish_reason(self) -> FinishReason:
        """Why the output ended."""
        return self.completed.finish_reason

    @property
    def usage(self) -> Usage:
        """Tokens of the request."""
        return self.completed.usage

    @property
    def timings(self) -> Timings:
        """Where the time went, in seconds."""
        return self.completed.timings

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of decoding, the first token left out. None with fewer than two tokens."""
        tokens, seconds = self.usage.output_tokens, self.timings.decode
        return (tokens - 1) / seconds if tokens > 1 and seconds > 0 else None
