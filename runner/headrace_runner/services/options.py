"""The options of a completion request, as the engine's values. Pure.

Every option is honoured or refused with the field's name; none is dropped.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

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
        _refuse("logprobs.top", "needs logprobs.enabled")
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


def resume_ids(request: StreamCompletionRequest, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    """The output of each choice that an earlier attempt has sent; empty if there was none.

    Raises InvalidRequest for a token outside the vocabulary, for an index of no choice or of one
    that was there, and for tokens of which it is not said whose they are.
    """
    choices = max(1, request.n)
    if request.resume_token_ids and request.resume_choices:
        _refuse("resume_choices", "does not go with resume_token_ids; give one of them")
    if request.resume_token_ids:
        if choices > 1:
            _refuse("resume_token_ids", "goes with one choice only; use resume_choices")
        return (_known(request.resume_token_ids, vocabulary, "resume_token_ids"),)
    sent: dict[int, tuple[int, ...]] = {}
    for place, choice in enumerate(request.resume_choices):
        field = f"resume_choices[{place}]"
        if choice.index >= choices:
            _refuse(f"{field}.index", f"the request's choices end at {choices - 1}; see n")
        if choice.index in sent:
            _refuse(f"{field}.index", f"choice {choice.index} is there already; name each once")
        sent[choice.index] = _known(choice.token_ids, vocabulary, f"{field}.token_ids")
    return tuple(sent.get(choice, ()) for choice in range(choices)) if sent else ()


def _known(ids: Sequence[int], vocabulary: int, field: str) -> tuple[int, ...]:
    if max(ids, default=0) >= vocabulary:
        for index, token in enumerate(ids):
            _check_token(token, vocabulary, f"{field}[{index}]")
    return tuple(ids)


def _check_token(token: int, vocabulary: int, field: str) -> None:
    if token >= vocabulary:
        _refuse(field, f"the model's vocabulary ends at {vocabulary - 1}")


def _refuse(field: str, rule: str) -> NoReturn:
    raise InvalidRequest(violations=[FieldViolation(field, rule)])
