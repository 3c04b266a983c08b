"""What has happened to a call over all its attempts, and what follows from it. Pure.

A stream's record knows what its client was sent, and so what the next runner is asked for, which of
its messages pass, and whether there may be a next one at all. Times are seconds on one clock.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import Enum

from google.protobuf.duration_pb2 import Duration

from headrace.v1.common_pb2 import Timings
from headrace.v1.completion_pb2 import (
    CompletionDelta,
    CompletionStarted,
    StreamCompletionRequest,
    StreamCompletionResponse,
)

MAX_DEATHS = 2
"""Runners that may die in a row under a call that does not advance."""
MAX_KILLS = 16
"""Runners that may be killed so from outside, which is no request's doing."""

# The first byte of a StreamCompletionResponse is the tag of its event.
_STARTED, _DELTA, _COMPLETED = b"\x0a", b"\x1a", b"\x22"


class End(Enum):
    """How a call lost its runner."""

    DIED = "died"
    """Or hung. The call may be the cause."""
    KILLED = "killed"
    """By a signal that nobody here has sent, and that is no fault of the process."""
    WENT = "went"
    """It is being stopped."""


class OutOfStepError(Exception):
    """A runner did not go on where the stream was. It is a bug, and not told to the client as
    output."""


@dataclass(slots=True)
class Record:
    """A call's attempts."""

    arrived: float
    queue: float = 0.0
    load: float = 0.0
    moves: int = 0
    """Attempts after the first."""
    completed: bool = False
    _deaths: int = 0
    """Since it last advanced, as are the kills."""
    _kills: int = 0

    @property
    def tokens_sent(self) -> int | None:
        """Output tokens that the client was sent; None before the first."""
        return None

    @property
    def suspect(self) -> bool:
        """Whether a runner died under the call since it last advanced."""
        return self._deaths > 0

    def waited(self, queue: float, load: float) -> None:
        """A runner was waited for so long."""
        self.queue += queue
        self.load += load

    def lost(self, now: float, end: End) -> bool:
        """The runner is lost. Gives whether another may be tried."""
        self._deaths += end is End.DIED
        self._kills += end is End.KILLED
        self.moves += 1
        return self._deaths < MAX_DEATHS and self._kills < MAX_KILLS


@dataclass(slots=True)
class _Choice:
    """What the client was sent of one choice."""

    before: int
    """Tokens of it that the client's own request resumed."""
    sent: array[int] = field(default_factory=lambda: array("I"))
    """Four bytes for each token: this is all that a stream keeps of its output."""


@dataclass(slots=True)
class _Attempt:
    """What one runner has done so far."""

    asked_at: float
    started_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float = 0.0


class StreamRecord(Record):
    """The record of a StreamCompletion."""

    __slots__ = (
        *("_attempt", "_choices", "_decode", "_prefill", "_request", "_told"),
        *("first_token_at", "_last_token_at"),
    )

    def __init__(self, request: bytes, arrived: float) -> None:
        """`request`: a StreamCompletionRequest, as the client sent it."""
        super().__init__(arrived)
        self._request = request
        self._told: CompletionStarted | None = None
        """What the client was told of the beginning. Every attempt is held to it."""
        self._choices: dict[int, _Choice] = {}
        self._prefill = 0.0
        self._decode = 0.0
        self._attempt = _Attempt(arrived)
        self.first_token_at: float | None = None
        """Of all attempts, as is the last."""
        self._last_token_at = arrived

    @property
    def prompt_tokens(self) -> int:
        """As the client was told; 0 before."""
        return 0 if self._told is None else self._told.prompt_tokens

    @property
    def tokens_made(self) -> int:
        """Tokens that the client was sent, without those that its request resumed."""
        return sum(len(choice.sent) for choice in self._choices.values())

    def seconds_per_token(self) -> float | None:
        """Of the longest choice, behind its first token; None where it has no more."""
        longest = max((len(choice.sent) for choice in self._choices.values()), default=0)
        if longest < 2 or self.first_token_at is None:
            return None
        return (self._last_token_at - self.first_token_at) / (longest - 1)

    @property
    def tokens_sent(self) -> int | None:
        if not self._choices:
            return None
        return sum(choice.before + len(choice.sent) for choice in self._choices.values())

    @property
    def advanced(self) -> bool:
        """Whether the attempt under way has given a token."""
        return self._attempt.first_token_at is not None

    def ask(self, now: float) -> bytes:
        """An attempt begins; gives the request for its runner."""
        self._attempt = _Attempt(now)
        if self._told is None:
            return self._request
        request = StreamCompletionRequest.FromString(self._request)
        request.request_id = self._told.id
        request.sampling.seed = self._told.seed
        if self._choices:
            self._resume(request)
        return request.SerializeToString()

    def _resume(self, request: StreamCompletionRequest) -> None:
        """Puts what was sent behind what the client's own request resumed."""
        resumed = {choice.index: list(choice.token_ids) for choice in request.resume_choices}
        if request.resume_token_ids:
            resumed[0] = list(request.resume_token_ids)
        for index, choice in self._choices.items():
            resumed[index] = [*resumed.get(index, ()), *choice.sent]
        request.ClearField("resume_token_ids")
        request.ClearField("resume_choices")
        for index, tokens in sorted(resumed.items()):
            request.resume_choices.add(index=index, token_ids=tokens)

    def take(self, data: bytes, now: float) -> bytes | None:
        """A message has come from the runner; gives what is to be sent for it.

        Raises OutOfStepError.
        """
        event = data[:1]
        if event == _DELTA:
            self._note(StreamCompletionResponse.FromString(data).delta, now)
        elif event == _STARTED:
            return self._start(data, now)
        elif event == _COMPLETED:
            return self._complete(data, now)
        return data

    def _start(self, data: bytes, now: float) -> bytes | None:
        self._attempt.started_at = now
        if self._told is not None:
            return None
        self._told = StreamCompletionResponse.FromString(data).started
        return data

    def _note(self, delta: CompletionDelta, now: float) -> None:
        new = len(delta.token_ids)
        choice = self._choices.get(delta.choice)
        if choice is None:
            choice = self._choices[delta.choice] = _Choice(delta.output_tokens - new)
        if choice.before + len(choice.sent) + new != delta.output_tokens:
            raise OutOfStepError(
                f"choice {delta.choice} has {len(choice.sent)} tokens behind {choice.before}, and "
                f"{new} more make {delta.output_tokens}"
            )
        choice.sent.extend(delta.token_ids)
        self._deaths = self._kills = 0
        attempt = self._attempt
        attempt.last_token_at = self._last_token_at = now
        if attempt.first_token_at is None:
            attempt.first_token_at = now
            if self.first_token_at is None:
                self.first_token_at = now

    def _complete(self, data: bytes, now: float) -> bytes:
        """The runner's `completed`, of all attempts."""
        self.completed = True
        message = StreamCompletionResponse.FromString(data)
        completed = message.completed
        completed.resumed = self.moves
        if self._told is not None:
            completed.usage.prompt_tokens = self._told.prompt_tokens
            completed.usage.cached_tokens = self._told.cached_tokens
        self._add_times(completed.timings, now)
        return message.SerializeToString()

    def _add_times(self, timings: Timings, now: float) -> None:
        for part, seconds in (
            (timings.queue, self.queue),
            (timings.load, self.load),
            (timings.prefill, self._prefill),
            (timings.decode, self._decode),
        ):
            part.FromNanoseconds(part.ToNanoseconds() + int(seconds * 1e9))
        timings.total.CopyFrom(duration(now - self.arrived))

    def lost(self, now: float, end: End) -> bool:
        # What the runner itself would have told at the end, as far as it was seen from here.
        attempt = self._attempt
        started_at = now if attempt.started_at is None else attempt.started_at
        self.queue += started_at - attempt.asked_at
        if attempt.first_token_at is not None:
            self._prefill += attempt.first_token_at - started_at
            self._decode += attempt.last_token_at - attempt.first_token_at
        else:
            self._prefill += now - started_at
        return super().lost(now, end)


def duration(seconds: float) -> Duration:
    """Seconds as a message."""
    message = Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message
