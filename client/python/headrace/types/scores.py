"""How likely texts are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias, TypedDict

from headrace.types.completion import Timings, TokenLogprob, Usage

Continuation: TypeAlias = str | Sequence[int]
"""A text, or tokens that are taken as they are."""


class ScoreOptions(TypedDict, total=False):
    """How continuations are scored: keyword arguments of `score`.

    What is absent or None is left to the server's default.
    """

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


@dataclass(frozen=True, slots=True)
class ContinuationScore:
    """How likely one continuation is."""

    logprob: float
    """Natural logarithm of its probability: the sum over its tokens."""

    token_ids: tuple[int, ...]
    """The tokens that were scored; at least one."""

    is_greedy: bool
    """Whether each of them is the likeliest in its place."""

    logprobs: tuple[TokenLogprob, ...]
    """One entry for each token, when log-probabilities were asked for."""

    @property
    def mean_logprob(self) -> float:
        """Of a token, to compare continuations of different lengths."""
        return self.logprob / len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely each continuation of a prompt is."""

    scores: tuple[ContinuationScore, ...]
    """One for each continuation, in the same order."""

    usage: Usage
    """Tokens of the prompt, once, and of all continuations."""

    timings: Timings
    """Where the time went."""

    digest: str
    """Digest of the model that served the call."""
