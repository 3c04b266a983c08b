"""What the controller measures, recorded where it becomes known. Costs next to nothing where nobody
collects it.

Called in the context of whom a measurement belongs to, or given it: exemplars carry that trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from opentelemetry import metrics
from opentelemetry.context import Context

from headrace.telemetry import names
from headrace.telemetry.outcome import CANCELLED
from headrace_server.runners.diagnosis import DeathCause

_meter = metrics.get_meter("headrace.controller")
_queue_duration = names.QUEUE_DURATION.create(_meter)
_refusals = names.REFUSALS.create(_meter)
_resumes = names.RESUMES.create(_meter)
_load_duration = names.LOAD_DURATION.create(_meter)
_unloads = names.UNLOADS.create(_meter)
_crashes = names.CRASHES.create(_meter)
_tokens = names.TOKENS.create(_meter)
_images = names.IMAGES.create(_meter)
_request_duration = names.GEN_AI_REQUEST_DURATION.create(_meter)
_first_token = names.GEN_AI_TIME_TO_FIRST_TOKEN.create(_meter)
_per_token = names.GEN_AI_TIME_PER_OUTPUT_TOKEN.create(_meter)

Attributes = Mapping[str, str]


def of_model(name: str) -> dict[str, str]:
    """The attributes of what is measured of a model."""
    return {names.HEADRACE_MODEL_NAME: name}


def granted(model: str, seconds: float, context: Context) -> None:
    """A call was given a runner, after so long."""
    _queue_duration.record(seconds, of_model(model), context)


def refused(model: str, kind: str, context: Context) -> None:
    """A call was given none, by an error of this kind."""
    _refusals.add(1, {**of_model(model), names.ERROR_TYPE: kind}, context)


def gave_up(model: str, seconds: float, context: Context) -> None:
    """A call has left while it waited, after so long."""
    _queue_duration.record(seconds, {**of_model(model), names.ERROR_TYPE: CANCELLED}, context)


def moved(model: str, cause: str) -> None:
    """A call lost its runner and asks for another."""
    _resumes.add(1, {**of_model(model), names.HEADRACE_RUNNER_CAUSE_OF_DEATH: cause})


def starting(model: str) -> None:
    """A runner is to be started. What may go wrong with it is counted from zero, so that the first
    time it does is an increase."""
    for cause in get_args(DeathCause):
        _crashes.add(0, {**of_model(model), names.HEADRACE_RUNNER_CAUSE_OF_DEATH: cause})


def loaded(model: str, seconds: float) -> None:
    """A runner serves, so long after the order to start it."""
    _load_duration.record(seconds, of_model(model))


def not_loaded(model: str, seconds: float, kind: str) -> None:
    """A load has failed, so long after the order to start a runner, by an error of this kind."""
    _load_duration.record(seconds, {**of_model(model), names.ERROR_TYPE: kind})


def unloaded(model: str, why: str) -> None:
    """A runner that was told to stop is gone."""
    _unloads.add(1, {**of_model(model), names.HEADRACE_UNLOAD_REASON: why})


def crashed(model: str, cause: str) -> None:
    """A process has ended by itself."""
    _crashes.add(1, {**of_model(model), names.HEADRACE_RUNNER_CAUSE_OF_DEATH: cause})


@dataclass(frozen=True, slots=True)
class Output:
    """What a call's client was sent. None: there is no such thing in its kind of call."""

    first_token: float | None = None
    """Seconds from the request's arrival; None also if there was none."""
    per_token: float | None = None
    """Seconds between two tokens; None also if there were not two."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    images: int | None = None
    """Whole ones."""
    carried_tokens: int = 0
    """Tokens that the request itself has brought to be carried on; the model read them."""
    drawn_tokens: int = 0
    """What the images cost, whole or not, in tokens; see `access.tokens_of_image`."""

    @property
    def charge(self) -> int:
        """Tokens to charge the caller for."""
        made = (self.prompt_tokens or 0) + (self.output_tokens or 0)
        return made + self.carried_tokens + self.drawn_tokens


def ended(
    model: str, attributes: Attributes, *, error: str, seconds: float, output: Output
) -> None:
    """A call has ended, as its client saw it: with queue, load and moves.

    `attributes` are those of its request. `error`: what ended it; empty if it was completed.
    """
    attributes = {**attributes, names.GEN_AI_RESPONSE_MODEL: model}
    failed = {names.ERROR_TYPE: error} if error else {}
    _request_duration.record(seconds, {**attributes, **failed})
    if output.first_token is not None:
        _first_token.record(output.first_token, attributes)
    if output.per_token is not None:
        _per_token.record(output.per_token, attributes)
    for kind, count in (
        (names.TOKEN_TYPE_INPUT, output.prompt_tokens),
        (names.TOKEN_TYPE_OUTPUT, output.output_tokens),
    ):
        if count is not None:
            _tokens.add(count, {**of_model(model), names.GEN_AI_TOKEN_TYPE: kind})
    if output.images is not None:
        _images.add(output.images, of_model(model))
