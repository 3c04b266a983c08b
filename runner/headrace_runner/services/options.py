"""The options of a completion request, as the engine's values. Pure.

Every option is honoured or refused with the field's name; none is dropped.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from headrace.errors import FieldViolation, InvalidRequest
from headrace.v1.completion_pb2 import (
    LogprobsOptions,
    SamplingOptions,
    StopOptions,
    StreamCompletionRequest,
)
from headrace_runner.engine.text.sampling import SamplingParams

_DEFAULT_WINDOW = 64


@dataclass(frozen=True, slots=True)
class StopRules:
    """What ends an output beside the end of the text and the token limit."""

    strings: tuple[str, ...]
    token_ids: frozenset[int]


def stop_rules(options: StopOptions, vocabulary: int) -> StopRules:
    """Raises InvalidRequest for a token outside the vocabulary."""
    for index, token in enumerate(options.token_ids):
        _check_token(token, vocabulary, f"stop.token_ids[{index}]")
    return StopRules(tuple(options.strings), frozenset(options.token_ids))


def top_logprobs(options: LogprobsOptions, vocabulary: int) -> int | None:
    """How many of the likeliest tokens to report at each position; None: no log-probabilities.

    Raises InvalidRequest for a number of them where none are asked for.
    """
    if options.enabled:
        return min(options.top, vocabulary)
    if options.top:
        raise InvalidRequest(violations=[FieldViolation("logprobs.top", "needs logprobs.enabled")])
    return None


def sampling_params(options: SamplingOptions, vocabulary: int) -> SamplingParams:
    """Fills in the defaults, a seed included. Raises InvalidRequest for a bias outside the
    vocabulary. Ranges have been checked by the contract's rules."""
    for token in options.logit_bias:
        _check_token(token, vocabulary, f"sampling.logit_bias[{token}]")

    def given(field: str, default: float) -> float:
        return float(getattr(options, field)) if options.HasField(field) else default  # type: ignore[arg-type]

    return SamplingParams(
        temperature=given("temperature", 1.0),
        top_p=given("top_p", 1.0),
        top_k=options.top_k,
        min_p=options.min_p,
        xtc_probability=options.xtc.probability,
        xtc_threshold=options.xtc.threshold,
        repetition_penalty=given("repetition_penalty", 1.0),
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        penalty_window=options.penalty_window or _DEFAULT_WINDOW,
        seed=options.seed if options.HasField("seed") else secrets.randbits(63),
        logit_bias=tuple(sorted(options.logit_bias.items())),
    )


def resume_ids(request: StreamCompletionRequest, vocabulary: int) -> tuple[int, ...]:
    """The output that an earlier attempt has sent.

    Raises InvalidRequest for a token outside the vocabulary, and for several choices: which of
    them sent what cannot be said.
    """
    ids = tuple(request.resume_token_ids)
    if ids and request.n > 1:
        rule = "goes with one choice only; leave n out"
        raise InvalidRequest(violations=[FieldViolation("resume_token_ids", rule)])
    if max(ids, default=0) >= vocabulary:
        for index, token in enumerate(ids):
            _check_token(token, vocabulary, f"resume_token_ids[{index}]")
    return ids


def _check_token(token: int, vocabulary: int, field: str) -> None:
    if token >= vocabulary:
        rule = f"the model's vocabulary ends at {vocabulary - 1}"
        raise InvalidRequest(violations=[FieldViolation(field, rule)])
