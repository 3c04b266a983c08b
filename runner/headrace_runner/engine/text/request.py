"""What the engine is asked for and what it answers, as plain values.

Times are `time.perf_counter_ns()` of this process.
"""

from __future__ import annotations

from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

from headrace_runner.engine.stream import Failed, Last
from headrace_runner.engine.text.adapters import AdapterRef
from headrace_runner.engine.text.calls import ToolCallPart, join
from headrace_runner.engine.text.guide import Guidance
from headrace_runner.engine.text.logprobs import Logprobs
from headrace_runner.engine.text.parts import Markup
from headrace_runner.engine.text.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion. `prompt` has a token at least; `max_tokens` and `choices` are 1 or more."""

    id: str
    prompt: list[int]
    max_tokens: int
    """Output tokens of each choice, resumed ones included."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    include_stop: bool = False
    top_logprobs: int | None = None
    """How many alternatives to report with each token's log-probability; None for no report."""
    priority: int = 0
    """A higher one goes first where requests wait for a place."""
    choices: int = 1
    """Outputs to generate from the one prompt."""
    resume: tuple[tuple[int, ...], ...] = ()
    """Output tokens of each choice that were sent before, by another runner; empty: of none."""
    markup: Markup = field(default_factory=Markup)
    """What sets reasoning and tool calls apart in the output."""
    guidance: Guidance | None = None
    """What its choices may draw; None: anything."""
    adapter: AdapterRef | None = None
    """What is added to the model for it."""
    context: Context = field(default_factory=copy_context, compare=False, repr=False)
    """Of who asks, for what the engine logs of the request."""

    def resumed(self, choice: int) -> tuple[int, ...]:
        """What was sent of a choice before."""
        return self.resume[choice] if self.resume else ()


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """How likely each of several continuations of one prompt is. `prompt` and each of the
    `continuations` have a token at least."""

    id: str
    prompt: list[int]
    continuations: tuple[tuple[int, ...], ...]
    skipped: tuple[int, ...] = ()
    """How many tokens at the beginning of each are not scored; empty: none."""
    top_logprobs: int = 0
    """How many of the likeliest tokens to report at each position."""
    priority: int = 0
    adapter: AdapterRef | None = None
    """What is added to the model for it."""
    context: Context = field(default_factory=copy_context, compare=False, repr=False)

    @property
    def tokens(self) -> int:
        """Of the prompt and all continuations."""
        return len(self.prompt) + sum(map(len, self.continuations))


TextRequest: TypeAlias = GenerationRequest | ScoringRequest


class Finish(Enum):
    """Why a choice ended."""

    END_OF_TEXT = "end_of_text"
    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class Started:
    """The request has left the queue; its prefill begins."""

    at: int
    cached_tokens: int
    """Prompt tokens that need not be computed."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompt tokens computed so far, cached ones included, and what the last pass had of them."""

    done: int
    total: int
    tokens: int = 0
    """Computed in it, those of a resumed output included."""
    began: int = 0
    at: int = 0
    passes: int = 1

    def after(self, earlier: Prefill) -> Prefill:
        """With what was computed before, which has not been read."""
        return replace(
            self,
            tokens=earlier.tokens + self.tokens,
            began=earlier.began,
            passes=earlier.passes + self.passes,
        )


@dataclass(slots=True)
class Delta:
    """More output of one choice: the text that is certain by now, and the tokens behind it."""

    choice: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallPart] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    output_tokens: int = 0
    """Tokens of this choice sent so far, these included."""

    def append(self, later: Delta) -> None:
        """Takes in the delta that follows this one, of the same choice."""
        self.text += later.text
        self.reasoning += later.reasoning
        join(self.tool_calls, later.tool_calls)
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.output_tokens = later.output_tokens


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """How one choice ended."""

    reason: Finish
    matched: str | int | None
    """The stop string, or the stop or end-of-text token."""
    output_tokens: int
    """Tokens generated in all, resumed ones included."""


@dataclass(frozen=True, slots=True)
class Finished(Last):
    """The request has ended as it should."""

    choices: tuple[ChoiceEnd, ...]
    """By the choices' indices."""
    started_at: int
    first_token_at: int
    at: int


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a continuation is, token by token, but for those that are skipped."""

    logprobs: tuple[Logprobs, ...]
    greedy: bool
    """Whether each of these tokens is the likeliest in its place."""


@dataclass(frozen=True, slots=True)
class Scored(Last):
    """All continuations have been scored."""

    scores: tuple[Score, ...]
    started_at: int
    prefilled_at: int
    """When the prompt was computed."""
    at: int
    passes: int
    """Forward passes that it had a part in."""


Event: TypeAlias = Started | Prefill | Delta | Finished | Scored | Failed
