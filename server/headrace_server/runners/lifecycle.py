"""The states of a runner and what moves it between them. Pure: no clock, no I/O, no asyncio.

A live state may carry a deadline: the moment at which a runner that has not moved on is stalled.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from headrace.host.handover import Listening, Loading, Report


class State(enum.Enum):
    """Where a runner is in its life."""

    STARTING = "starting"
    """Not yet listening."""
    LOADING = "loading"
    SERVING = "serving"
    STALLED = "stalled"
    """Served before; now says it makes no progress, or does not answer."""
    STOPPING = "stopping"
    DEAD = "dead"


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    start: float = 60.0
    """From the start of the process until it listens."""
    load: float = 300.0
    """Without progress while loading."""
    stalled: float = 30.0
    """In STALLED, before the runner is killed."""


@dataclass(frozen=True)
class Health:
    """What the runner's health service said, or that it did not answer."""

    serving: bool


@dataclass(frozen=True)
class Stopping:
    """It was told to stop."""


@dataclass(frozen=True)
class Died:
    """The process is gone."""


Event = Report | Health | Stopping | Died


@dataclass(frozen=True)
class Life:
    """A runner's state at a moment."""

    state: State
    fraction: float = 0.0
    """Of the load, 0 to 1."""
    deadline: float | None = None
    """On the clock of `now`; past it the runner counts as stuck."""

    @property
    def overdue(self) -> str:
        """What a runner past its deadline failed to do."""
        match self.state:
            case State.STARTING:
                return "it did not report an address in time"
            case State.LOADING:
                return "its load made no progress"
            case _:
                return "it made no progress, or did not answer"


def begin(now: float, limits: Limits) -> Life:
    """The life of a process about to start."""
    return Life(State.STARTING, deadline=now + limits.start)


def advance(life: Life, event: Event, now: float, limits: Limits) -> Life:
    """The life after an event; the same object when the event changes nothing."""
    match life.state, event:
        case State.DEAD, _:
            return life
        case _, Died():
            return replace(life, state=State.DEAD, deadline=None)
        case _, Stopping():
            return replace(life, state=State.STOPPING, deadline=None)
        case State.STARTING, Listening():
            return Life(State.LOADING, deadline=now + limits.load)
        case State.LOADING, Loading(fraction) if fraction > life.fraction:
            return replace(life, fraction=fraction, deadline=now + limits.load)
        case ((State.LOADING | State.STALLED), Health(serving=True)):
            return Life(State.SERVING, fraction=1.0)
        case State.SERVING, Health(serving=False):
            return replace(life, state=State.STALLED, deadline=now + limits.stalled)
        case _:
            return life
