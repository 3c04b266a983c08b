"""What the scheduler knows, hears and orders, as plain values.

Times are seconds on one monotonic clock, memory is bytes. Nothing here acts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from headrace.errors import HeadraceError

FOREVER = math.inf
"""The keep-alive of a model that stays until it is unloaded by hand."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that the scheduler holds."""

    memory: int
    """Bytes that all runners together may hold."""
    concurrency: int = 32
    """Requests that one runner serves at once; more of them wait here."""
    queue_per_model: int = 64
    """Requests that may wait for one model."""
    queue_total: int = 256
    """Requests that may wait in all."""
    keep_alive: float = 300.0
    """Seconds that an idle runner stays where the request does not say."""
    max_crashes: int = 4
    """Crashes of one model within `crash_window` that open its circuit."""
    crash_window: float = 120.0
    """Seconds for which a crash counts."""
    backoff: float = 1.0
    """Seconds before the restart after the second crash; doubled with each further one."""
    cooldown: float = 30.0
    """Seconds for which an open circuit refuses."""
    retry_after: float = 1.0
    """Seconds after which one who was refused for a full queue may come again."""


class Phase(Enum):
    """Where a runner is, as far as scheduling cares. It only moves forward."""

    LOADING = "loading"
    SERVING = "serving"
    RETIRING = "retiring"
    """Takes no new request; it is stopped when its last one has ended."""
    STOPPING = "stopping"
    """Told to stop. Its memory counts until it has exited."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One runner and what it holds."""

    runner: str
    key: str
    memory: int
    keep_alive: float
    idle_since: float
    """When it last became idle; of no meaning while `leases` is not empty."""
    phase: Phase = Phase.LOADING
    leases: frozenset[int] = frozenset()
    leaving: bool = False
    """Unloaded while it was loading: those who waited for it are served, then it goes."""

    @property
    def expires_at(self) -> float:
        """When it is to be unloaded; infinite while it is busy, loading or pinned."""
        idle = self.phase is Phase.SERVING and not self.leases
        return self.idle_since + self.keep_alive if idle else math.inf

    @property
    def pinned(self) -> bool:
        """Whether it stays until it is unloaded by hand."""
        return self.keep_alive == FOREVER

    @property
    def immovable(self) -> bool:
        """Whether no other model can hope for its memory."""
        staying = self.phase in (Phase.LOADING, Phase.SERVING) and not self.leaving
        return self.pinned and staying

    @property
    def evictable(self) -> bool:
        """Whether it may be stopped in favour of another model."""
        return self.phase is Phase.SERVING and not self.leases and not self.pinned


@dataclass(frozen=True, slots=True)
class Crashes:
    """What went wrong lately with the runners of one model."""

    times: tuple[float, ...] = ()
    cause: str = ""
    retry_at: float = -math.inf
    """No runner of this model is started before."""
    open: bool = False
    """Whether who asks before `retry_at` is refused rather than kept waiting."""

    def another(self, cause: str, now: float, limits: Limits) -> Crashes:
        """What to remember after one more: when to try again, and whether to give up for now."""
        times = (*(time for time in self.times if now - time < limits.crash_window), now)
        if len(times) >= limits.max_crashes:
            return Crashes(times, cause, retry_at=now + limits.cooldown, open=True)
        # One death is an accident: the next runner starts at once.
        wait = limits.backoff * 2.0 ** (len(times) - 2) if len(times) > 1 else 0.0
        return Crashes(times, cause, retry_at=now + wait)

    def overcome(self) -> Crashes:
        """What to remember after a load went well: they still count, but hinder nothing."""
        return Crashes(self.times)


# What the scheduler hears.


@dataclass(frozen=True, slots=True)
class Asked:
    """A request wants a runner that serves `key`."""

    request: int
    key: str
    needs: int
    """Bytes to set aside if the model has to be loaded."""
    keep_alive: float | None = None
    """Seconds; None takes the default and leaves a pinned model pinned."""
    priority: int = 0
    deadline: float = math.inf


@dataclass(frozen=True, slots=True)
class Left:
    """A request has ended, whether it was waiting or being served."""

    request: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A runner serves. `memory` is its own report of the bytes it holds; None: unknown."""

    runner: str
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Exited:
    """A runner is gone and its memory free."""

    runner: str
    cause: str
    """A cause of `ERROR_REASON_RUNNER_CRASHED`."""
    error: HeadraceError
    """What those who wait for it are told if no other is started."""


@dataclass(frozen=True, slots=True)
class Unload:
    """The runner of `key` is to stop once its requests have ended."""

    key: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Nothing is taken any more; every runner stops once its requests have ended."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = Asked | Left | Loaded | Exited | Unload | Drain | Tick


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
    why: str


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


@dataclass(frozen=True, slots=True)
class State:
    """Everything that the scheduler knows."""

    limits: Limits
    slots: Mapping[str, Slot] = field(default_factory=lambda: MappingProxyType({}))
    """By runner."""
    waiting: tuple[Asked, ...] = ()
    """In the order in which they are served."""
    crashes: Mapping[str, Crashes] = field(default_factory=lambda: MappingProxyType({}))
    """By key."""
    draining: bool = False
    started: int = 0
    """Runners started so far; numbers the next one."""

    def slot_of(self, key: str) -> Slot | None:
        """The runner of a model, whatever its phase."""
        return next((slot for slot in self.slots.values() if slot.key == key), None)

    def position(self, request: int) -> int:
        """How many requests for the same model are ahead of a waiting one."""
        ahead: dict[str, int] = {}
        for asked in self.waiting:
            if asked.request == request:
                return ahead.get(asked.key, 0)
            ahead[asked.key] = ahead.get(asked.key, 0) + 1
        return 0

    def wake_at(self, now: float) -> float:
        """When a `Tick` is due, after `now`; infinite when only events matter."""
        wanted = {asked.key for asked in self.waiting}
        times = [
            *(slot.expires_at for slot in self.slots.values()),
            *(asked.deadline for asked in self.waiting),
            *(c.retry_at for key, c in self.crashes.items() if key in wanted),
        ]
        return min((time for time in times if time > now), default=math.inf)
