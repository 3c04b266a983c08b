"""What the engine is asked for and what it answers, as plain values.

Times are `time.perf_counter_ns()` of this process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from headrace_runner.engine.text.batch import Logprobs
from headrace_runner.engine.text.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One completion. `prompt` has at least one token, `max_tokens` is at least 1."""

    id: str
    prompt: list[int]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    include_stop: bool = False
    top_logprobs: int | None = None
    """How many alternatives to report with each token's log-probability; None for no report."""
    priority: int = 0
    """A higher one goes first where requests wait for a place."""


class Finish(Enum):
    """Why a choice ended."""

    END_OF_TEXT = "end_of_text"
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Started:
    """The request has left the queue; its prefill begins."""

    at: int


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompt tokens computed so far."""

    done: int
    total: int


@dataclass(slots=True)
class Delta:
    """More output: the tokens drawn, and the text that is certain by now."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    output_tokens: int = 0

    def append(self, later: Delta) -> None:
        """Takes in the delta that follows this one."""
        self.text += later.text
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.output_tokens = later.output_tokens


@dataclass(frozen=True, slots=True)
class Finished:
    """The request has ended as it should."""

    reason: Finish
    matched: str | int | None
    output_tokens: int
    started_at: int
    first_token_at: int
    at: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The request has ended with an error."""

    error: Exception


Event: TypeAlias = Started | Prefill | Delta | Finished | Failed
