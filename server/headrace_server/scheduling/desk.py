"""One decision at work: a copy of the state to change, and the orders that come of it."""

from dataclasses import replace
from types import MappingProxyType
from typing import Any

from headrace.errors import HeadraceError
from headrace_server.scheduling import admission
from headrace_server.scheduling.events import Action, Refuse, Stop
from headrace_server.scheduling.state import FOREVER, Asked, Crashes, Phase, Slot, State, Why

NO_CRASHES = Crashes()


class Desk:
    """A copy of the state, and the small hands that change it."""

    def __init__(self, state: State, now: float) -> None:
        self.limits = state.limits
        self.now = now
        self.slots = dict(state.slots)
        self.waiting = list(state.waiting)
        self.crashes = dict(state.crashes)
        self.draining = state.draining
        self.closed = state.closed
        self.short = state.short
        self.started = state.started
        self.actions: list[Action] = []

    def state(self) -> State:
        """What is known now."""
        return State(
            self.limits,
            MappingProxyType(self.slots),
            tuple(self.waiting),
            MappingProxyType(self.crashes),
            self.draining,
            self.closed,
            self.short,
            self.started,
        )

    def of(self, key: str) -> list[Slot]:
        """The runners of a model, the oldest first."""
        return [slot for slot in self.slots.values() if slot.key == key]

    def waiters(self, key: str) -> list[Asked]:
        """Those who wait for a model, in their order."""
        return [asked for asked in self.waiting if asked.key == key]

    def crashes_of(self, key: str) -> Crashes:
        """What went wrong with a model lately."""
        return self.crashes.get(key, NO_CRASHES)

    def held(self) -> int:
        """Bytes that all runners hold."""
        return sum(slot.memory for slot in self.slots.values())

    def held_in(self, phase: Phase) -> int:
        """Bytes that the runners in a phase hold."""
        return sum(slot.memory for slot in self.slots.values() if slot.phase is phase)

    def free(self) -> int:
        """Bytes of the budget that nobody holds; below 0 where it is exceeded."""
        return self.limits.memory - self.held()

    def by_value(self) -> list[Slot]:
        """Who may be evicted, the least valuable first."""
        return sorted((slot for slot in self.slots.values() if slot.evictable), key=_value)

    def earliest(self, asked: Asked, place: int) -> float:
        """Seconds until one who stands at this place of the queue could have a first token."""
        return admission.earliest(
            asked,
            self.of(asked.key),
            ahead=sum(other.key == asked.key for other in self.waiting[:place]),
            retry_at=self.crashes_of(asked.key).retry_at,
            now=self.now,
        )

    def asked_keep_alive(self, asked: Asked) -> float | None:
        """How long the model is to stay after this request, by a request's word; None: no word."""
        if asked.keep_alive is not None:
            return asked.keep_alive
        usable = (slot for slot in self.of(asked.key) if slot.usable)
        pinned = any(slot.asked_keep_alive == FOREVER for slot in usable)
        return FOREVER if pinned else None

    def put(self, slot: Slot, **changes: Any) -> Slot:
        """Change a runner's entry."""
        changed = self.slots[slot.runner] = replace(slot, **changes)
        return changed

    def retire(self, slot: Slot, why: Why) -> None:
        """Stop a runner as soon as it has no requests."""
        if slot.leases:
            self.put(slot, phase=Phase.RETIRING, going_for=why)
        elif slot.phase is not Phase.STOPPING:
            self.stop(slot, why)

    def stop(self, slot: Slot, why: Why) -> None:
        """Stop a runner that has no requests."""
        self.put(slot, phase=Phase.STOPPING)
        self.actions.append(Stop(slot.runner, why))

    def refuse(self, asked: Asked, error: HeadraceError) -> None:
        """End the wait of one."""
        self.waiting = [other for other in self.waiting if other is not asked]
        self.actions.append(Refuse(asked.request, error))

    def refuse_all(self, key: str, error: HeadraceError) -> None:
        """End the wait of all who wait for a model."""
        for asked in self.waiters(key):
            self.refuse(asked, error)


def _value(slot: Slot) -> tuple[bool, bool, float, int]:
    """Less for who is worth less: stalled, extra, long idle, large."""
    return slot.phase is not Phase.STALLED, not slot.extra, slot.idle_since, -slot.memory
