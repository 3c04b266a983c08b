"""What the scheduler knows, as plain values. What it hears and orders is in `events`.

Times are seconds on one monotonic clock, memory is bytes. Nothing here acts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import TypeAlias

from headrace_server.scheduling.timing import Pace

FOREVER = math.inf
"""The keep-alive of a model that stays until it is unloaded by hand."""

Prefixes: TypeAlias = tuple[int, ...]
"""Fingerprints of a prompt's growing prefixes, which end at `BORDERS`; the shortest first."""

BORDERS = tuple(size for power in range(8, 21) for size in (1 << power, 3 << (power - 1)))
"""Where prefixes end, in bytes: each border is 1.3 to 1.5 times the one before, from 256 bytes to
1.5 MiB. They are the same for every prompt, and few however long it is."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How one model is served: the operator's word, or the defaults."""

    concurrency: int = 32
    """Requests that one runner serves at once; more of them wait."""
    keep_alive: float = 300.0
    """Seconds that an idle runner stays where the request does not say."""
    pinned: bool = False
    """Whether it stays until it is unloaded by hand, whatever requests say."""
    replicas: int = 1
    """Runners of it at most."""

    def with_that_of(self, other: Policy) -> Policy:
        """One that does as much as either, for models that share their runners."""
        return replace(
            self,
            keep_alive=max(self.keep_alive, other.keep_alive),
            pinned=self.pinned or other.pinned,
            replicas=max(self.replicas, other.replicas),
        )


_DEFAULT_POLICY = Policy()
_DEFAULT_PACE = Pace()


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that the scheduler holds."""

    memory: int
    """Bytes that all runners together may hold."""
    queue_per_model: int = 64
    """Requests that may wait for one model."""
    queue_total: int = 256
    """Requests that may wait in all."""
    max_crashes: int = 4
    """Loads of one model that fail in a row, or crashes of it within `crash_window`, that open its
    circuit."""
    crash_window: float = 120.0
    """Seconds for which a crash counts that is no failed load."""
    backoff: float = 1.0
    """Seconds before the restart after the second crash; doubled with each further one."""
    cooldown: float = 30.0
    """Seconds for which an open circuit refuses."""
    retry_after: float = 1.0
    """Seconds after which one who was refused for a full queue may come again."""
    patience: float = 30.0
    """Seconds that a load waits for others to become idle by themselves. After that it is given
    their memory next: they take nothing new, and go when what they serve has ended."""


class Phase(Enum):
    """Where a runner is, as far as scheduling cares. See docs/scheduling.md."""

    LOADING = "loading"
    SERVING = "serving"
    STALLED = "stalled"
    """Served before and makes no progress now. Takes no new request, and may be replaced."""
    RETIRING = "retiring"
    """Takes no new request; it is stopped when its last one has ended."""
    STOPPING = "stopping"
    """Told to stop. Its memory counts until it has exited."""


class Why(StrEnum):
    """Why a runner is stopped that did not end by itself. See docs/scheduling.md."""

    UNLOADED = "unloaded"
    KEEP_ALIVE = "keep_alive"
    EVICTED = "evicted"
    PRESSURE = "pressure"
    SURPLUS = "surplus"
    DRAINED = "drained"


@dataclass(frozen=True, slots=True)
class Slot:
    """One runner and what it holds."""

    runner: str
    key: str
    name: str
    """Of its model, as the request called it that it was started for."""
    memory: int
    policy: Policy
    asked_keep_alive: float | None
    """Of its model, as the last request that said one has set it; None: none did."""
    started_at: float
    idle_since: float
    """When it last became idle; of no meaning while `leases` is not empty."""
    phase: Phase = Phase.LOADING
    leases: frozenset[int] = frozenset()
    extra: bool = False
    """Whether it stands beside another of its model, for the load. Such a one is never pinned."""
    leaving: bool = False
    """Unloaded while it was loading: those who waited for it are served, then it goes."""
    advanced: bool = False
    """Whether a stream on it has had its first token: its model can get something done."""
    served: tuple[Prefixes, ...] = ()
    """Beginnings of prompts that it has served lately."""
    going_for: Why | None = None
    """Why it is RETIRING."""

    @property
    def usable(self) -> bool:
        """Whether waiters may hope for it."""
        return self.phase in (Phase.LOADING, Phase.SERVING)

    @property
    def has_place(self) -> bool:
        """Whether one more request may use it."""
        return self.phase is Phase.SERVING and len(self.leases) < self.policy.concurrency

    @property
    def idle(self) -> bool:
        """Whether it is loaded, and serves nobody."""
        return not self.leases and self.phase in (Phase.SERVING, Phase.STALLED)

    @property
    def expires_at(self) -> float:
        """When it is to be unloaded; infinite while it is busy, loading or pinned."""
        return self.idle_since + self.stays if self.idle else math.inf

    @property
    def keep_alive(self) -> float:
        """Of its model: a request's word, or the policy's."""
        asked = self.asked_keep_alive
        return self.policy.keep_alive if asked is None else asked

    @property
    def stays(self) -> float:
        """Seconds that it stays when it is idle."""
        if self.extra:
            return min(self.keep_alive, self.policy.keep_alive)
        return FOREVER if self.policy.pinned else self.keep_alive

    @property
    def pinned(self) -> bool:
        """Whether it stays until it is unloaded by hand."""
        return not self.extra and self.stays == FOREVER

    @property
    def immovable(self) -> bool:
        """Whether no other model can hope for its memory."""
        return self.pinned and self.usable and not self.leaving

    @property
    def evictable(self) -> bool:
        """Whether it may be stopped in favour of another model.

        A pin keeps a model, not a process that does not answer.
        """
        return self.idle and (self.phase is Phase.STALLED or not self.pinned)


@dataclass(frozen=True, slots=True)
class Crashes:
    """What went wrong lately with the runners of one model that got nothing done."""

    times: tuple[float, ...] = ()
    """Within the window."""
    failed_loads: int = 0
    """In a row, however long each of them took to fail."""
    cause: str = ""
    """Of the latest crash."""
    retry_at: float = -math.inf
    """No runner of this model is started before."""
    open: bool = False
    """Whether who asks before `retry_at` is refused rather than kept waiting."""
    cramped: bool = False
    """Whether its last load ran out of memory beside others, and is to be tried once more."""
    name: str = ""
    """Of the model, as the latest runner that crashed had it; empty where none has."""

    def another(
        self, name: str, cause: str, now: float, limits: Limits, *, loading: bool, cramped: bool
    ) -> Crashes:
        """What to remember after one more: when to try again, and whether to give up for now."""
        times = (*(time for time in self.times if now - time < limits.crash_window), now)
        failed_loads = self.failed_loads + loading
        count = max(len(times), failed_loads)
        known = Crashes(times, failed_loads, cause, cramped=cramped, name=name)
        if count >= limits.max_crashes:
            return replace(known, retry_at=now + limits.cooldown, open=True)
        # One death is an accident: the next runner starts at once.
        wait = limits.backoff * 2.0 ** (count - 2) if count > 1 else 0.0
        return replace(known, retry_at=now + wait)

    def overcome(self) -> Crashes:
        """What to remember after a load went well: they still count, but hinder nothing."""
        return Crashes(self.times, cause=self.cause, name=self.name)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request wants a runner that serves `key`. An event, and then one who waits."""

    request: int
    key: str
    name: str
    """What it calls the model: one of the names that share a key."""
    needs: int
    """Bytes to set aside if the model has to be loaded."""
    policy: Policy = _DEFAULT_POLICY
    keep_alive: float | None = None
    """Seconds; None takes the policy's and leaves a pinned model pinned."""
    priority: int = 0
    deadline: float = math.inf
    prefixes: Prefixes = ()
    pace: Pace = _DEFAULT_PACE
    """How long its parts take at least, by what was measured."""
    moved: bool = False
    """Whether it was being served, and its runner is lost: it goes before all that have not begun,
    and no queue is too full for it."""
    loads: bool = False
    """Whether it wants no more than that the model is loaded: nobody is served after it."""
    since: float = 0.0
    """When it joined the queue. The core's own."""

    @property
    def rank(self) -> tuple[bool, int]:
        """Who is served before whom; among equals, first come is first."""
        return self.moved, self.priority


@dataclass(frozen=True, slots=True)
class State:
    """Everything that the scheduler knows."""

    limits: Limits
    slots: Mapping[str, Slot] = field(default_factory=lambda: MappingProxyType({}))
    """By runner, the oldest first."""
    waiting: tuple[Asked, ...] = ()
    """In the order in which they are served."""
    crashes: Mapping[str, Crashes] = field(default_factory=lambda: MappingProxyType({}))
    """By key."""
    draining: bool = False
    """Whether nothing is taken but streams that move."""
    closed: bool = False
    """Whether nothing is taken at all."""
    short: int = 0
    """Bytes that the machine itself is short of, as last reported."""
    started: int = 0
    """Runners started so far; numbers the next one."""

    def slots_of(self, key: str) -> tuple[Slot, ...]:
        """The runners of a model, whatever their phase, the oldest first."""
        return tuple(slot for slot in self.slots.values() if slot.key == key)

    def names(self) -> dict[str, str]:
        """What the model of each key is called: one name, whatever others share its runners.

        It is that of its oldest runner, else of the first who waits, else of the last crash.
        """
        found: dict[str, str] = {}
        those: tuple[Slot | Asked, ...] = (*self.slots.values(), *self.waiting)
        for one in those:
            found.setdefault(one.key, one.name)
        for key, crashes in self.crashes.items():
            found.setdefault(key, crashes.name)
        return found

    def queues(self) -> dict[str, int]:
        """How many requests wait for a runner, by the name of their model."""
        names = self.names()
        return Counter(names[asked.key] for asked in self.waiting)

    def remembering(self, keys: Collection[str]) -> State:
        """The same, without the crashes of other models."""
        crashes = {key: crashes for key, crashes in self.crashes.items() if key in keys}
        return replace(self, crashes=MappingProxyType(crashes))

    def positions(self) -> dict[int, int]:
        """Of each request that waits, how many for the same model are ahead of it."""
        found: dict[int, int] = {}
        ahead: dict[str, int] = {}
        for asked in self.waiting:
            found[asked.request] = ahead.get(asked.key, 0)
            ahead[asked.key] = found[asked.request] + (not asked.loads)
        return found

    def wake_at(self, now: float) -> float:
        """When a `Tick` is due, after `now`; infinite when only events matter."""
        wanted = {asked.key for asked in self.waiting}
        times = [
            *(slot.expires_at for slot in self.slots.values()),
            *(asked.deadline for asked in self.waiting),
            *(asked.since + self.limits.patience for asked in self.waiting),
            *(c.retry_at for key, c in self.crashes.items() if key in wanted),
        ]
        return min((time for time in times if time > now), default=math.inf)
