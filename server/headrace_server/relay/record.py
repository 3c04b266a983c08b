"""What has happened to a call over all its attempts, and what follows from it. Pure.

A stream's record knows what its client was sent, and so what the next runner is asked for, which of
its messages pass, and whether there may be a next one at all: `completions` and `images` say how.
Times are seconds on one clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from google.protobuf.duration_pb2 import Duration

from headrace.errors import RunnerCrashed
from headrace.v1.common_pb2 import Timings
from headrace_server.measures import Output

if TYPE_CHECKING:
    from headrace_server.scheduling.ticket import Wait

MAX_DEATHS = 2
"""Runners that may die in a row under a call that does not advance."""
MAX_KILLS = 16
"""Runners that may be killed so from outside, which is no request's doing."""


class End(Enum):
    """How a call lost its runner."""

    DIED = "died"
    """Or hung. The call may be the cause."""
    KILLED = "killed"
    """By a signal that nobody here has sent, and that is no fault of the process."""
    WENT = "went"
    """It is being stopped."""


class OutOfStepError(Exception):
    """A runner did not go on where the stream was. It is a bug, and the stream ends with it. What
    another runner than the last gives so is not told to the client as output."""


class DivergedError(Exception):
    """A runner that was to repeat what the client has gave something else. The message goes behind
    how the one before was lost."""


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
    def begun(self) -> bool:
        """Whether the client has some of the output, so that a new try would repeat it."""
        return False

    @property
    def counts(self) -> Mapping[str, int]:
        """What the client was sent, for the log."""
        return {}

    @property
    def attributes(self) -> Mapping[str, int]:
        """The same, for the call's span."""
        return {}

    @property
    def suspect(self) -> bool:
        """Whether a runner died under the call since it last advanced."""
        return self._deaths > 0

    def crashed(self, message: str, cause: str) -> RunnerCrashed:
        """The error of a call that is not carried on."""
        return RunnerCrashed(message, cause=cause)

    def waited(self, queue: float, load: float) -> None:
        """A runner was waited for so long."""
        self.queue += queue
        self.load += load

    def add_waits(self, timings: Timings, now: float) -> None:
        """To what the last runner says of itself, where the time went before that."""
        _add(timings.queue, self.queue)
        _add(timings.load, self.load)
        timings.total.CopyFrom(duration(now - self.arrived))

    def lost(self, now: float, end: End) -> bool:
        """The runner is lost. Gives whether another may be tried."""
        self._deaths += end is End.DIED
        self._kills += end is End.KILLED
        self.moves += 1
        return self._deaths < MAX_DEATHS and self._kills < MAX_KILLS


@dataclass(slots=True)
class AttemptTimes:
    """When one runner did what."""

    asked_at: float
    started_at: float | None = None
    first_at: float | None = None
    """Its first token, or the beginning of its first step."""
    last_at: float = 0.0
    """Its last token or step, once it has the first."""


class StreamRecord(Record, ABC):
    """The record of a stream: what it is that streams is its own class's to know."""

    __slots__ = ("_attempt", "_decode", "_prefill")

    method: ClassVar[str]
    """As in "/package.Service/Method"."""

    def __init__(self, arrived: float) -> None:
        super().__init__(arrived)
        self._prefill = 0.0
        """In lost attempts, as is the other."""
        self._decode = 0.0
        self._attempt = AttemptTimes(arrived)

    @property
    @abstractmethod
    def advanced(self) -> bool:
        """Whether the attempt under way has brought the stream on."""

    @abstractmethod
    def ask(self, now: float) -> bytes:
        """An attempt begins; gives the request for its runner."""

    @abstractmethod
    def take(self, data: bytes, now: float) -> bytes | None:
        """A message has come from the runner; gives what is to be sent for it.

        Raises OutOfStepError, DivergedError.
        """

    @abstractmethod
    def waiting(self, wait: Wait) -> bytes:
        """A message to one who waits for a runner."""

    @abstractmethod
    def output(self) -> Output:
        """What the client was sent, as it is measured at the end."""

    def lost(self, now: float, end: End) -> bool:
        # What the runner itself would have told at the end, as far as it was seen from here.
        attempt = self._attempt
        started_at = now if attempt.started_at is None else attempt.started_at
        self.queue += started_at - attempt.asked_at
        if attempt.first_at is not None:
            self._prefill += attempt.first_at - started_at
            self._decode += attempt.last_at - attempt.first_at
        else:
            self._prefill += now - started_at
        return super().lost(now, end)

    def _add_times(self, timings: Timings, now: float) -> None:
        """To those of the last runner, for `completed`."""
        self.add_waits(timings, now)
        for part, seconds in ((timings.prefill, self._prefill), (timings.decode, self._decode)):
            _add(part, seconds)


def _add(part: Duration, seconds: float) -> None:
    part.FromNanoseconds(part.ToNanoseconds() + int(seconds * 1e9))


def duration(seconds: float) -> Duration:
    """Seconds as a message."""
    message = Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message
