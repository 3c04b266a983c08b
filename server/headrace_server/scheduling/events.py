"""What the scheduler hears, and what it orders, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.errors import HeadraceError
from headrace_server.scheduling.state import Asked, Policy, Why

# What the scheduler hears: of requests, see also `Asked`.


@dataclass(frozen=True, slots=True)
class Left:
    """A request has ended, whether it was waiting or being served."""

    request: int


# Of runners.


@dataclass(frozen=True, slots=True)
class Loaded:
    """A runner serves. `memory` is its own report of the bytes it holds; None: unknown."""

    runner: str
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A runner that serves has said anew how many bytes it holds."""

    runner: str
    memory: int


@dataclass(frozen=True, slots=True)
class Advanced:
    """A stream on the runner has had its first token. Once a runner is enough."""

    runner: str


@dataclass(frozen=True, slots=True)
class Stalled:
    """A runner that served makes no progress, or does not answer."""

    runner: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """A stalled runner makes progress again."""

    runner: str


@dataclass(frozen=True, slots=True)
class Leaving:
    """A runner takes nothing new, though nobody here has told it to go: its requests may end."""

    runner: str


@dataclass(frozen=True, slots=True)
class Exited:
    """A runner is gone and its memory free."""

    runner: str
    cause: str
    """A cause of `ERROR_REASON_RUNNER_CRASHED`."""
    error: HeadraceError
    """What those who wait for it are told if no other is started."""


# Of the whole.


@dataclass(frozen=True, slots=True)
class Unload:
    """The runners of `key` are to stop once their requests have ended."""

    key: str


@dataclass(frozen=True, slots=True)
class Policed:
    """The model of `key` is served by this policy from now on."""

    key: str
    policy: Policy


@dataclass(frozen=True, slots=True)
class Pressure:
    """The machine itself is short of so many bytes of memory; 0: it is no more."""

    short: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Nothing new is taken any more; every runner stops once its requests have ended."""

    moves: bool = True
    """Whether streams that lose their runner still get another."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


RunnerEvent = Loaded | Measured | Advanced | Stalled | Recovered | Leaving | Exited
Event = Asked | Left | RunnerEvent | Unload | Policed | Pressure | Drain | Tick


# What the scheduler orders.


@dataclass(frozen=True, slots=True)
class Start:
    """Start a runner."""

    runner: str
    key: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a runner. It has no requests."""

    runner: str
    why: Why


@dataclass(frozen=True, slots=True)
class Grant:
    """The request may use the runner until it has left."""

    request: int
    runner: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request ends with an error."""

    request: int
    error: HeadraceError


Action = Start | Stop | Grant | Refuse


def is_routine(event: Event, actions: Sequence[Action]) -> bool:
    """Whether this is but a request that came, was given its runner, or went."""
    return isinstance(event, Asked | Left | Advanced) and all(
        isinstance(action, Grant) for action in actions
    )
