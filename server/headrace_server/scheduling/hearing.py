"""What each event means for the state, before anything follows from it. Part of the pure core."""

import math
from dataclasses import replace

from headrace.errors import (
    CircuitOpen,
    DeadlineUnreachable,
    Draining,
    HeadraceError,
    ModelTooLarge,
    QueueFull,
)
from headrace_server.scheduling.desk import Desk
from headrace_server.scheduling.events import (
    Advanced,
    Drain,
    Event,
    Exited,
    Leaving,
    Left,
    Loaded,
    Measured,
    Policed,
    Pressure,
    Recovered,
    Refuse,
    RunnerEvent,
    Stalled,
    Tick,
    Unload,
)
from headrace_server.scheduling.state import Asked, Phase, Policy, Slot, Why

FINAL = frozenset({"LOAD_FAILED", "UNSUPPORTED_MODEL", "MODEL_CORRUPT"})
"""Causes of a failed load that another try cannot mend."""


def hear(desk: Desk, event: Event) -> None:
    """Write down what has happened, and refuse whom it leaves without hope."""
    match event:
        case Asked():
            _asked(desk, event)
        case Left(request):
            _left(desk, request)
        case Unload(key):
            _unload(desk, key)
        case Policed(key, policy):
            _policed(desk, key, policy)
        case Pressure(short):
            _pressed(desk, short)
        case Drain(moves):
            _drain(desk, moves=moves)
        case Tick():
            pass
        case _:
            slot = desk.slots.get(event.runner)
            if slot is not None:
                _hear_of(desk, slot, event)


def _hear_of(desk: Desk, slot: Slot, event: RunnerEvent) -> None:
    match event, slot.phase:
        case Loaded(memory=memory), Phase.LOADING:
            _loaded(desk, slot, memory)
        case Measured(memory=memory), Phase.SERVING | Phase.STALLED | Phase.RETIRING:
            desk.put(slot, memory=memory)
        case Advanced(), _:
            desk.put(slot, advanced=True)
            desk.crashes.pop(slot.key, None)
        case Leaving(), Phase.SERVING | Phase.STALLED:
            desk.retire(slot, Why.DRAINED)
        case Stalled(), Phase.SERVING:
            desk.put(slot, phase=Phase.STALLED)
        case Recovered(), Phase.STALLED:
            desk.put(slot, phase=Phase.SERVING)
        case Exited(), _:
            _exited(desk, slot, event)
        case _:
            pass


def _asked(desk: Desk, asked: Asked) -> None:
    """Join the queue, or be refused at once."""
    behind = (i for i, other in enumerate(desk.waiting) if other.rank < asked.rank)
    place = next(behind, len(desk.waiting))
    error = _objection(desk, asked, place)
    if error is not None:
        desk.actions.append(Refuse(asked.request, error))
        return
    desk.waiting.insert(place, replace(asked, since=desk.now))


def _objection(desk: Desk, asked: Asked, place: int) -> HeadraceError | None:
    limits, slots = desk.limits, desk.of(asked.key)
    if desk.closed or (desk.draining and not asked.moved):
        return Draining(limits.retry_after)
    if not slots and asked.needs > limits.memory:
        return ModelTooLarge(needs=asked.needs, has=limits.memory)
    if not any(slot.has_place for slot in slots):
        crashes = desk.crashes_of(asked.key)
        hopeless = crashes.open and not any(slot.usable for slot in slots)
        if hopeless and desk.now < crashes.retry_at:
            return CircuitOpen(cause=crashes.cause, retry_after=crashes.retry_at - desk.now)
        # Who moves is one of few: there was a place for each of them.
        if not asked.moved and len(desk.waiters(asked.key)) >= limits.queue_per_model:
            return QueueFull(limits.retry_after, queue="model", limit=limits.queue_per_model)
        if not asked.moved and len(desk.waiting) >= limits.queue_total:
            return QueueFull(limits.retry_after, queue="controller", limit=limits.queue_total)
    if asked.deadline != math.inf:
        estimate = desk.earliest(asked, place)
        if desk.now + estimate >= asked.deadline:
            return DeadlineUnreachable(estimate)
    return None


def _left(desk: Desk, request: int) -> None:
    desk.waiting = [asked for asked in desk.waiting if asked.request != request]
    for slot in tuple(desk.slots.values()):
        if request in slot.leases:
            slot = desk.put(slot, leases=slot.leases - {request}, idle_since=desk.now)
            if slot.going_for is not None:
                desk.retire(slot, slot.going_for)


def _loaded(desk: Desk, slot: Slot, memory: int | None) -> None:
    held = slot.memory if memory is None else memory
    desk.put(slot, phase=Phase.SERVING, memory=held, idle_since=desk.now)
    if slot.key in desk.crashes:
        desk.crashes[slot.key] = desk.crashes[slot.key].overcome()


def _unload(desk: Desk, key: str) -> None:
    for slot in desk.of(key):
        if slot.phase is Phase.LOADING and desk.waiters(key):
            desk.put(slot, leaving=True)
        else:
            desk.retire(slot, Why.UNLOADED)


def _policed(desk: Desk, key: str, policy: Policy) -> None:
    for slot in desk.of(key):
        # How many it serves at once a runner was told at its start.
        desk.put(slot, policy=replace(policy, concurrency=slot.policy.concurrency))
    desk.waiting = [
        replace(asked, policy=policy) if asked.key == key else asked for asked in desk.waiting
    ]


def _pressed(desk: Desk, short: int) -> None:
    """Give back what the machine is short of, as far as idle runners go: the largest first."""
    desk.short = short
    short -= desk.held_in(Phase.STOPPING)
    for slot in sorted(desk.slots.values(), key=lambda slot: -slot.memory):
        if slot.evictable and short > 0:
            desk.stop(slot, Why.PRESSURE)
            short -= slot.memory


def _drain(desk: Desk, *, moves: bool) -> None:
    """Runners go by themselves from now on, once nobody needs them."""
    desk.draining = True
    desk.closed = desk.closed or not moves
    for asked in tuple(desk.waiting):
        if desk.closed or not asked.moved:
            desk.refuse(asked, Draining(desk.limits.retry_after))


def _exited(desk: Desk, slot: Slot, event: Exited) -> None:
    del desk.slots[slot.runner]
    if slot.phase is Phase.STOPPING:
        return
    loading, key = slot.phase is Phase.LOADING, slot.key
    before = desk.crashes_of(key)
    if slot.advanced:
        # Its model gets things done: whom this hit may go on at once, as often as it takes.
        desk.crashes[key] = replace(before, cause=event.cause, name=slot.name)
        return
    last = not any(other.usable for other in desk.of(key))
    if loading and last and event.cause in FINAL:
        desk.refuse_all(key, event.error)
        return
    lacks_memory = loading and last and event.cause == "OUT_OF_MEMORY"
    # The estimate was too low. Give the load the room of all who are idle, once.
    again = bool(lacks_memory and desk.slots and desk.waiters(key) and not before.cramped)
    crashes = before.another(
        slot.name, event.cause, desk.now, desk.limits, loading=loading, cramped=again
    )
    desk.crashes[key] = crashes
    if again:
        for other in tuple(desk.slots.values()):
            if other.evictable:
                desk.stop(other, Why.EVICTED)
    elif lacks_memory:
        desk.refuse_all(key, event.error)
    if crashes.open and last:
        wait = crashes.retry_at - desk.now
        looping = CircuitOpen(cause=event.cause, retry_after=wait)
        desk.refuse_all(key, event.error if loading else looping)
