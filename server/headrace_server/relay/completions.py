"""The record of a StreamCompletion: its tokens. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from headrace.errors import RunnerCrashed
from headrace.telemetry import names
from headrace.v1.completion_pb2 import (
    CompletionProgress,
    CompletionStarted,
    StreamCompletionRequest,
    StreamCompletionResponse,
)
from headrace_server.measures import Output
from headrace_server.relay.record import AttemptTimes, End, OutOfStepError, StreamRecord

if TYPE_CHECKING:
    from headrace_server.scheduling.ticket import Wait

# The first byte of a StreamCompletionResponse is the tag of its event.
_STARTED, _DELTA, _COMPLETED = b"\x0a", b"\x1a", b"\x22"

_UNREAD = 64
"""Deltas of one choice that pass before they are looked into, all at once."""


@dataclass(slots=True)
class _Choice:
    """What the client was sent of one choice."""

    before: int
    """Tokens of it that the client's own request resumed."""
    sent: array[int] = field(default_factory=lambda: array("I"))
    """Four bytes for each token: this is all that a stream keeps of its output."""


def carried_tokens(request: StreamCompletionRequest) -> int:
    """Tokens that a client's request brings to be carried on."""
    choices = sum(len(choice.token_ids) for choice in request.resume_choices)
    return len(request.resume_token_ids) + choices


class CompletionRecord(StreamRecord):
    """The record of a StreamCompletion."""

    __slots__ = (
        "_alone",
        "_carried",
        "_choices",
        "_fault",
        "_last_token_at",
        "_request",
        "_told",
        "_unread",
        "first_token_at",
    )

    method = "/headrace.v1.CompletionService/StreamCompletion"

    def __init__(
        self, request: bytes, arrived: float, carried: int = 0, *, alone: bool = False
    ) -> None:
        """`request`: a StreamCompletionRequest, as the client sent it. `carried`: tokens that it
        brings to be carried on. `alone`: whether it wants one choice, whose deltas need not be told
        apart."""
        super().__init__(arrived)
        self._request = request
        self._carried = carried
        self._unread: list[bytes] = []
        """Deltas that came, and whose token ids are still to be taken from them."""
        self._alone = alone
        self._fault = ""
        """What does not fit together in what came. Nothing is counted from there on."""
        self._told: CompletionStarted | None = None
        """What the client was told of the beginning. Every attempt is held to it."""
        self._choices: dict[int, _Choice] = {}
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
        self._read()
        return sum(len(choice.sent) for choice in self._choices.values())

    def seconds_per_token(self) -> float | None:
        """Of the longest choice, behind its first token; None where it has no more."""
        self._read()
        longest = max((len(choice.sent) for choice in self._choices.values()), default=0)
        if longest < 2 or self.first_token_at is None:
            return None
        return (self._last_token_at - self.first_token_at) / (longest - 1)

    @property
    def tokens_sent(self) -> int | None:
        """Output tokens that the client was sent; None before the first."""
        self._read()
        if not self._choices:
            return None
        return sum(choice.before + len(choice.sent) for choice in self._choices.values())

    @property
    def begun(self) -> bool:
        return self.first_token_at is not None

    @property
    def counts(self) -> Mapping[str, int]:
        return {"output_tokens": self.tokens_sent or 0}

    @property
    def attributes(self) -> Mapping[str, int]:
        sent = self.tokens_sent
        return {} if sent is None else {names.GEN_AI_USAGE_OUTPUT_TOKENS: sent}

    def crashed(self, message: str, cause: str) -> RunnerCrashed:
        return RunnerCrashed(message, cause=cause, tokens_sent=self.tokens_sent)

    def output(self) -> Output:
        first = self.first_token_at
        return Output(
            first_token=None if first is None else first - self.arrived,
            per_token=self.seconds_per_token(),
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.tokens_made,
            carried_tokens=0 if self._told is None else self._carried,
        )

    def waiting(self, wait: Wait) -> bytes:
        progress = CompletionProgress(
            queue_position=wait.queue_position, load_fraction=wait.load_fraction
        )
        return StreamCompletionResponse(progress=progress).SerializeToString()

    @property
    def advanced(self) -> bool:
        """Whether the attempt under way has given a token."""
        return self._attempt.first_at is not None

    def ask(self, now: float) -> bytes:
        self._attempt = AttemptTimes(now)
        self._read()
        self._stay_in_step()
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
        event = data[:1]
        if event == _DELTA:
            self._unread.append(data)
            self._last_token_at = now
            flows = self._alone and self._attempt.first_at is not None
            if not flows or len(self._unread) >= _UNREAD:
                self._note(now)
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

    def _note(self, now: float) -> None:
        """A delta that is more than one of many. Those are looked into once they are some, or
        somebody asks; but before it passes where there are choices to tell apart, or where it has
        to begin where another runner ended."""
        begins = self._attempt.first_at is None
        if not begins or self.moves > 0 or not self._alone:
            self._read()
            self._stay_in_step()
        if begins:
            self._deaths = self._kills = 0
            self._attempt.first_at = now
            if self.first_token_at is None:
                self.first_token_at = now

    def lost(self, now: float, end: End) -> bool:
        self._attempt.last_at = self._last_token_at
        return super().lost(now, end)

    def _read(self) -> None:
        """Take the token ids from the deltas that came. Never raises."""
        if not self._unread:
            return
        # Messages one behind the other are one message, whose lists are theirs joined and whose
        # numbers are the last one's. To decode that takes a tenth of decoding each.
        data = b"".join(self._unread)
        self._unread.clear()
        try:
            delta = StreamCompletionResponse.FromString(data).delta
        except DecodeError as error:
            self._fault = f"a delta cannot be read: {error}"
            return
        new = len(delta.token_ids)
        choice = self._choices.get(delta.choice)
        if choice is None:
            before = self._carried if self._alone else delta.output_tokens - new
            choice = self._choices[delta.choice] = _Choice(before)
        if choice.before + len(choice.sent) + new != delta.output_tokens:
            self._fault = (
                f"choice {delta.choice} has {len(choice.sent)} tokens behind {choice.before}, and "
                f"{new} more make {delta.output_tokens}"
            )
        if not self._fault:
            choice.sent.extend(delta.token_ids)

    def _stay_in_step(self) -> None:
        """Raises OutOfStepError where what came does not fit together."""
        if self._fault:
            raise OutOfStepError(self._fault)

    def _complete(self, data: bytes, now: float) -> bytes:
        """The runner's `completed`, of all attempts."""
        self._read()
        self._stay_in_step()
        self.completed = True
        message = StreamCompletionResponse.FromString(data)
        completed = message.completed
        completed.resumed = self.moves
        if self._told is not None:
            completed.usage.prompt_tokens = self._told.prompt_tokens
            completed.usage.cached_tokens = self._told.cached_tokens
        self._add_times(completed.timings, now)
        return message.SerializeToString()
