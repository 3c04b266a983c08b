"""The states of a runner and what moves it between them. Pure: no clock, no I/O, no asyncio.

A live state may carry a deadline: the moment at which a runner that has not moved on is stalled.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from headrace.host.handover import Draining, Failed, Listening, Loading, Ready, Report


class State(enum.Enum):
    """Where a runner is in its life."""

    STARTING = "starting"
    """Not yet listening."""
    LOADING = "loading"
    SERVING = "serving"
    STALLED = "stalled"
    """Served before; now says it makes no progress, or does not answer."""
    DRAINING = "draining"
    """Was told to go by somebody else, and takes nothing new: what it has may end."""
    FAILING = "failing"
    """Has said that it fails; is about to exit."""
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
    agree: float = 30.0
    """From its report that it is ready until its health service says so."""
    leave: float = 15.0
    """Until it has exited, after it has said that it fails, the grace of its drain is over, or it
    has stopped reporting before it served."""


@dataclass(frozen=True)
class Health:
    """What the runner's health service said, or that it did not answer."""

    serving: bool


@dataclass(frozen=True)
class Silent:
    """It has closed its report pipe, as the end of a process does too."""


@dataclass(frozen=True)
class Stopping:
    """It was told to stop."""


@dataclass(frozen=True)
class Died:
    """The process is gone."""


Event = Report | Health | Silent | Stopping | Died


@dataclass(frozen=True)
class Life:
    """A runner's state at a moment."""

    state: State
    fraction: float = 0.0
    """Of the load, 0 to 1."""
    deadline: float | None = None
    """On the clock of `now`; past it the runner counts as stuck."""
    owes: str = ""
    """What a runner past its deadline failed to do."""


_OVERSLEPT = 5.0
"""Seconds too late, from which on it is no mere delay."""
_AFTER_SLEEP = 30.0
"""Seconds."""

_LISTEN = "it did not report an address in time"
_LOAD = "its load made no progress"
_AGREE = "it reported that it was ready, but its health service did not say so"
_SILENT = "it closed its report pipe before it served"
_LEAVE = "it failed and did not exit"
_DRAIN = "it drained and did not exit"
_STEP = "it made no progress, or did not answer"


def begin(now: float, limits: Limits) -> Life:
    """The life of a process about to start."""
    return Life(State.STARTING, deadline=now + limits.start, owes=_LISTEN)


def advance(life: Life, event: Event, now: float, limits: Limits) -> Life:
    """The life after an event; the same object when the event changes nothing."""
    match life.state, event:
        case State.DEAD, _:
            return life
        case _, Died():
            return replace(life, state=State.DEAD, deadline=None)
        case _, Stopping():
            return replace(life, state=State.STOPPING, deadline=None)
        case ((State.FAILING | State.STOPPING), _):
            return life
        case _, (Failed() | Draining()):
            return _leave(life, event, now, limits)
        case ((State.STARTING | State.LOADING), Silent()):
            deadline = min(life.deadline or now, now + limits.leave)
            return replace(life, deadline=deadline, owes=_SILENT)
        case State.STARTING, Listening():
            return Life(State.LOADING, deadline=now + limits.load, owes=_LOAD)
        case State.LOADING, Loading(fraction) if fraction > life.fraction:
            return replace(life, fraction=fraction, deadline=now + limits.load)
        case State.LOADING, Ready() if life.owes is not _AGREE:
            return replace(life, deadline=now + limits.agree, owes=_AGREE)
        case ((State.LOADING | State.STALLED), Health(serving=True)):
            return Life(State.SERVING, fraction=1.0)
        case State.SERVING, Health(serving=False):
            deadline = now + limits.stalled
            return replace(life, state=State.STALLED, deadline=deadline, owes=_STEP)
        case _:
            return life


def _leave(life: Life, event: Failed | Draining, now: float, limits: Limits) -> Life:
    deadline = now + limits.leave
    if isinstance(event, Failed):
        return replace(life, state=State.FAILING, deadline=deadline, owes=_LEAVE)
    return replace(life, state=State.DRAINING, deadline=deadline + event.grace, owes=_DRAIN)


def overslept(life: Life, now: float) -> Life | None:
    """The life with more time, for a watcher that comes much too late to its deadline.

    Then the watcher did not run, nor perhaps the runner: the machine or the container was
    suspended. The runner gets the time of a sign of life. None: the deadline holds.
    """
    if life.deadline is None or now - life.deadline < _OVERSLEPT:
        return None
    return replace(life, deadline=now + _AFTER_SLEEP)
