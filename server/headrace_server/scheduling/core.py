"""Who loads, who waits, who goes: the pure core of scheduling.

`decide` takes what is known, what has happened and the time, and gives what is
known now and what is to be done. It never acts, waits, or looks at a clock.

Nothing is remembered about what was meant to happen next. After every event
`_Desk.settle` derives it anew from the state: who can be served is, who has
outstayed the keep-alive goes, who is wanted and fits is loaded. So a load that
nobody waits for any more is not started, and a victim is never revived.
"""

from dataclasses import replace
from types import MappingProxyType
from typing import Any

from headrace.errors import (
    CircuitOpen,
    DeadlineUnreachable,
    Draining,
    HeadraceError,
    InsufficientMemory,
    ModelTooLarge,
    QueueFull,
)
from headrace_server.scheduling.state import (
    Action,
    Asked,
    Crashes,
    Drain,
    Event,
    Exited,
    Grant,
    Left,
    Loaded,
    Phase,
    Refuse,
    Slot,
    Start,
    State,
    Stop,
    Tick,
    Unload,
)

# Causes of a failed load that another try cannot mend.
_FINAL = frozenset({"LOAD_FAILED", "UNSUPPORTED_MODEL", "MODEL_CORRUPT"})


def decide(state: State, event: Event, now: float) -> tuple[State, tuple[Action, ...]]:
    """The state after an event, and what is to be done, in this order.

    Events about requests and runners that are not known (any more) change
    nothing, so the shell need not know who won a race.
    """
    desk = _Desk(state, now)
    desk.hear(event)
    desk.settle()
    return desk.state(), tuple(desk.actions)


class _Desk:
    """One decision at work on a copy of the state."""

    def __init__(self, state: State, now: float) -> None:
        self._base = state
        self._limits = state.limits
        self._now = now
        self._slots = dict(state.slots)
        self._waiting = list(state.waiting)
        self._crashes = dict(state.crashes)
        self._draining = state.draining
        self._started = state.started
        self.actions: list[Action] = []

    def state(self) -> State:
        return replace(
            self._base,
            slots=MappingProxyType(self._slots),
            waiting=tuple(self._waiting),
            crashes=MappingProxyType(self._crashes),
            draining=self._draining,
            started=self._started,
        )

    # What has happened.

    def hear(self, event: Event) -> None:
        match event:
            case Asked():
                self._asked(event)
            case Left(request):
                self._left(request)
            case Loaded(runner, memory):
                self._loaded(runner, memory)
            case Exited():
                self._exited(event)
            case Unload(key):
                self._unload(key)
            case Drain():
                self._drain()
            case Tick():
                pass

    def _asked(self, asked: Asked) -> None:
        """Join the queue, or be refused at once."""
        error = self._objection(asked)
        if error is not None:
            self.actions.append(Refuse(asked.request, error))
            return
        behind = (i for i, other in enumerate(self._waiting) if other.priority < asked.priority)
        self._waiting.insert(next(behind, len(self._waiting)), asked)

    def _objection(self, asked: Asked) -> HeadraceError | None:
        limits, crashes = self._limits, self._crashes.get(asked.key)
        if self._draining:
            return Draining(limits.retry_after)
        slot = next(iter(self._of(asked.key)), None)
        if slot is None and asked.needs > limits.memory:
            return ModelTooLarge(needs=asked.needs, has=limits.memory)
        if slot is not None and self._has_place(slot):
            return None
        if crashes is not None and crashes.open and self._now < crashes.retry_at:
            return CircuitOpen(cause=crashes.cause, retry_after=crashes.retry_at - self._now)
        if len(self._waiters(asked.key)) >= limits.queue_per_model:
            return QueueFull(limits.retry_after, queue="model", limit=limits.queue_per_model)
        if len(self._waiting) >= limits.queue_total:
            return QueueFull(limits.retry_after, queue="controller", limit=limits.queue_total)
        return None

    def _left(self, request: int) -> None:
        self._waiting = [asked for asked in self._waiting if asked.request != request]
        for slot in tuple(self._slots.values()):
            if request in slot.leases:
                slot = self._put(slot, leases=slot.leases - {request}, idle_since=self._now)
                if slot.phase is Phase.RETIRING:
                    self._retire(slot, "unloaded")

    def _loaded(self, runner: str, memory: int | None) -> None:
        slot = self._slots.get(runner)
        if slot is not None and slot.phase is Phase.LOADING:
            held = slot.memory if memory is None else memory
            self._put(slot, phase=Phase.SERVING, memory=held, idle_since=self._now)
            if slot.key in self._crashes:
                self._crashes[slot.key] = self._crashes[slot.key].overcome()

    def _unload(self, key: str) -> None:
        for slot in self._of(key):
            if slot.phase is Phase.LOADING and self._waiters(key):
                self._put(slot, leaving=True)
            else:
                self._retire(slot, "unloaded")

    def _drain(self) -> None:
        self._draining = True
        for asked in tuple(self._waiting):
            self._refuse(asked, Draining(self._limits.retry_after))
        for slot in tuple(self._slots.values()):
            self._retire(slot, "drained")

    def _exited(self, event: Exited) -> None:
        slot = self._slots.pop(event.runner, None)
        if slot is None or slot.phase is Phase.STOPPING:
            return
        loading, key = slot.phase is Phase.LOADING, slot.key
        if loading and event.cause in _FINAL:
            self._refuse_all(key, event.error)
            return
        before = self._crashes.get(key, Crashes())
        crashes = self._crashes[key] = before.another(event.cause, self._now, self._limits)
        if loading and event.cause == "OUT_OF_MEMORY":
            # The estimate was too low. Give the load the room of all who are idle, once.
            if not self._slots or before.cause == "OUT_OF_MEMORY":
                self._refuse_all(key, event.error)
            for other in tuple(self._slots.values()):
                if other.evictable and self._waiters(key):
                    self._stop(other, "evicted")
        if crashes.open:
            wait = crashes.retry_at - self._now
            looping = CircuitOpen(cause=event.cause, retry_after=wait)
            self._refuse_all(key, event.error if loading else looping)

    # What follows from it.

    def settle(self) -> None:
        for asked in tuple(self._waiting):
            if asked.deadline <= self._now:
                self._refuse(asked, DeadlineUnreachable(estimate=0.0))
        self._serve()
        for slot in tuple(self._slots.values()):
            if slot.leaving and slot.phase is Phase.SERVING:
                self._retire(slot, "unloaded")
            elif slot.expires_at <= self._now:
                self._stop(slot, "keep_alive")
        self._shrink()
        self._load()

    def _serve(self) -> None:
        """Give every waiter whose model has a place that place, first come first served."""
        for asked in tuple(self._waiting):
            for slot in filter(self._has_place, self._of(asked.key)):
                self._waiting.remove(asked)
                stay = self._keep_alive(asked, slot)
                self._put(slot, leases=slot.leases | {asked.request}, keep_alive=stay)
                self.actions.append(Grant(asked.request, slot.runner))

    def _shrink(self) -> None:
        """Get back under the budget where runners turned out larger than estimated."""
        over = sum(s.memory for s in self._slots.values() if s.phase is not Phase.STOPPING)
        for slot in self._by_value():
            if over > self._limits.memory:
                self._stop(slot, "evicted")
                over -= slot.memory

    def _load(self) -> None:
        """Start the models that are waited for, as far as memory goes.

        A model for which others are being stopped has that memory reserved.
        One that has to wait for busy runners has not: meanwhile others may use
        what is free.
        """
        reserved = 0
        first: dict[str, Asked] = {}
        for asked in self._waiting:
            first.setdefault(asked.key, asked)
        for key, asked in first.items():
            crashes = self._crashes.get(key, Crashes())
            if self._of(key) or self._now < crashes.retry_at:
                continue
            pinned = sum(slot.memory for slot in self._slots.values() if slot.immovable)
            if asked.needs > self._limits.memory - pinned:
                free = max(0, self._limits.memory - pinned)
                self._refuse_all(key, InsufficientMemory(needs=asked.needs, free=free))
                continue
            free = self._limits.memory - reserved - sum(s.memory for s in self._slots.values())
            stopping = [s for s in self._slots.values() if s.phase is Phase.STOPPING]
            # After a load ran out of memory the figures are not to be trusted: wait for the room.
            if asked.needs <= free and not (stopping and crashes.cause == "OUT_OF_MEMORY"):
                self._start(asked)
            elif self._make_room(asked.needs - free - sum(slot.memory for slot in stopping)):
                reserved += asked.needs

    def _make_room(self, bytes_short: int) -> bool:
        """Stop idle runners for what is short; none if that is not enough."""
        victims: list[Slot] = []
        for slot in self._by_value():
            if bytes_short > 0:
                victims.append(slot)
                bytes_short -= slot.memory
        if bytes_short <= 0:
            for slot in victims:
                self._stop(slot, "evicted")
        return bytes_short <= 0

    def _start(self, asked: Asked) -> None:
        self._started += 1
        runner = f"r{self._started}"
        stay = self._keep_alive(asked, None)
        self._slots[runner] = Slot(runner, asked.key, asked.needs, stay, idle_since=self._now)
        self.actions.append(Start(runner, asked.key))

    # Small hands.

    def _keep_alive(self, asked: Asked, slot: Slot | None) -> float:
        if asked.keep_alive is not None:
            return asked.keep_alive
        return slot.keep_alive if slot is not None and slot.pinned else self._limits.keep_alive

    def _has_place(self, slot: Slot) -> bool:
        return slot.phase is Phase.SERVING and len(slot.leases) < self._limits.concurrency

    def _by_value(self) -> list[Slot]:
        """Who may be evicted, the least valuable first."""
        idle = (slot for slot in self._slots.values() if slot.evictable)
        return sorted(idle, key=lambda slot: (slot.idle_since, -slot.memory))

    def _of(self, key: str) -> list[Slot]:
        return [slot for slot in self._slots.values() if slot.key == key]

    def _waiters(self, key: str) -> list[Asked]:
        return [asked for asked in self._waiting if asked.key == key]

    def _put(self, slot: Slot, **changes: Any) -> Slot:
        self._slots[slot.runner] = replace(slot, **changes)
        return self._slots[slot.runner]

    def _retire(self, slot: Slot, why: str) -> None:
        if slot.leases:
            self._put(slot, phase=Phase.RETIRING)
        elif slot.phase is not Phase.STOPPING:
            self._stop(slot, why)

    def _stop(self, slot: Slot, why: str) -> None:
        self._put(slot, phase=Phase.STOPPING)
        self.actions.append(Stop(slot.runner, why))

    def _refuse(self, asked: Asked, error: HeadraceError) -> None:
        self._waiting.remove(asked)
        self.actions.append(Refuse(asked.request, error))

    def _refuse_all(self, key: str, error: HeadraceError) -> None:
        for asked in self._waiters(key):
            self._refuse(asked, error)
