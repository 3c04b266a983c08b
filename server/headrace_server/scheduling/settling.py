"""What follows from the state: who is served, who goes, what is loaded. Part of the pure core."""

from dataclasses import replace

from headrace.errors import DeadlineUnreachable, InsufficientMemory
from headrace_server.scheduling import routing
from headrace_server.scheduling.desk import Desk
from headrace_server.scheduling.events import Grant, Start
from headrace_server.scheduling.state import Asked, Phase, Slot, Why

# Which of a model's runners counts as the first, and which are extra.
_STANDING = {Phase.SERVING: 0, Phase.LOADING: 1, Phase.STALLED: 2}


def settle(desk: Desk) -> None:
    """Do all that can be done now; doing it again would change nothing."""
    _expire(desk)
    _rank(desk)
    _serve(desk)
    _let_go(desk)
    _rank(desk)
    _shrink(desk)
    if not desk.waiting:
        return
    _give_up(desk)
    _load(desk)
    while _give_up(desk):  # What was just started may be there to stay.
        _load(desk)
    _rank(desk)


def _expire(desk: Desk) -> None:
    """Refuse those whose deadline has come."""
    for asked in tuple(desk.waiting):
        if asked.deadline <= desk.now:
            place = desk.waiting.index(asked)
            desk.refuse(asked, DeadlineUnreachable(desk.earliest(asked, place)))


def _rank(desk: Desk) -> None:
    """See which runners stand beside the first of their model."""
    slots = desk.slots.values()
    if len({slot.key for slot in slots}) == len(slots) and not any(slot.extra for slot in slots):
        return
    first: set[str] = set()
    here = (slot for slot in slots if slot.phase in _STANDING)
    for slot in sorted(here, key=lambda slot: _STANDING[slot.phase]):
        extra = slot.usable and slot.key in first
        if extra is not slot.extra:
            desk.put(slot, extra=extra)
        first.add(slot.key)


def _serve(desk: Desk) -> None:
    """Give every waiter whose model has a place that place, first come first served."""
    full: set[str] = set()
    for asked in tuple(desk.waiting):
        if asked.key in full:
            continue
        places = [slot for slot in desk.of(asked.key) if slot.has_place]
        if places:
            _grant(desk, asked, routing.choose(places, asked.prefixes))
        else:
            full.add(asked.key)


def _grant(desk: Desk, asked: Asked, slot: Slot) -> None:
    desk.waiting = [other for other in desk.waiting if other is not asked]
    keep_alive = desk.asked_keep_alive(asked)
    for other in desk.of(asked.key):
        if other.asked_keep_alive != keep_alive:
            desk.put(other, asked_keep_alive=keep_alive)
    slot = desk.slots[slot.runner]
    served = routing.remember(slot.served, asked.prefixes)
    desk.put(slot, leases=slot.leases | {asked.request}, served=served)
    desk.actions.append(Grant(asked.request, slot.runner))


def _let_go(desk: Desk) -> None:
    """Part with those who were unloaded, have outstayed, or are more than there may be; and in a
    drain with those whom nobody needs."""
    for slot in tuple(desk.slots.values()):
        if slot.leaving and slot.phase is Phase.SERVING:
            desk.retire(slot, Why.UNLOADED)
        elif desk.draining and not slot.leases and not desk.waiters(slot.key):
            desk.retire(slot, Why.DRAINED)
        elif slot.expires_at <= desk.now:
            desk.stop(slot, Why.KEEP_ALIVE)
        elif _surplus(desk, slot):
            desk.stop(slot, Why.SURPLUS)


def _surplus(desk: Desk, slot: Slot) -> bool:
    """Whether it is one more than there may be: another recovered, or fewer are wanted now."""
    if not (slot.extra and slot.usable) or slot.leases or desk.waiters(slot.key):
        return False
    return sum(other.usable for other in desk.of(slot.key)) > slot.policy.replicas


def _shrink(desk: Desk) -> None:
    """Get back under the budget where runners turned out larger than estimated."""
    over = desk.held() - desk.held_in(Phase.STOPPING)
    for slot in desk.by_value():
        if over > desk.limits.memory:
            desk.stop(slot, Why.EVICTED)
            over -= slot.memory


def _give_up(desk: Desk) -> bool:
    """Refuse those whose model cannot fit beside those that are there to stay; whether any were."""
    pinned = sum(slot.memory for slot in desk.slots.values() if slot.immovable)
    room = desk.limits.memory - pinned
    hopeless = {
        asked.key: asked.needs
        for asked in desk.waiting
        if asked.needs > room and _may_start(desk, asked) and not _has_usable(desk, asked.key)
    }
    for key, needs in hopeless.items():
        desk.refuse_all(key, InsufficientMemory(needs=needs, free=max(0, room)))
    return bool(hopeless)


def _has_usable(desk: Desk, key: str) -> bool:
    return any(slot.usable for slot in desk.of(key))


def _load(desk: Desk) -> None:
    """Start the models that are waited for, as far as memory goes.

    A model for which others are being stopped has that memory reserved. One that has to wait
    for busy runners has not, until its patience is over: meanwhile others may use what is
    free. A further runner of a model comes last, and never makes another go.
    """
    first: dict[str, Asked] = {}
    since: dict[str, float] = {}
    for asked in desk.waiting:
        first.setdefault(asked.key, asked)
        since[asked.key] = min(asked.since, since.get(asked.key, asked.since))
    reserved = 0
    further: list[Asked] = []
    ahead: set[str] = set()
    for key, asked in first.items():
        if _may_start(desk, asked):
            if _has_usable(desk, key):
                further.append(asked)
            else:
                claims = desk.now >= since[key] + desk.limits.patience
                needed = _load_first(desk, asked, reserved, ahead if claims else None)
                # Where one of its own makes room, it cannot start before that one has gone.
                reserved += needed if _may_start(desk, asked) else 0
        ahead.add(key)
    for asked in further:
        loading = any(slot.phase is Phase.LOADING for slot in desk.of(asked.key))
        if not loading and not desk.short and asked.needs <= desk.free() - reserved:
            _start(desk, asked)


def _may_start(desk: Desk, asked: Asked) -> bool:
    """Whether a model may have one more runner now, as far as memory lets it."""
    if desk.now < desk.crashes_of(asked.key).retry_at:
        return False
    # One that is stalled is as good as dead. Only its memory counts.
    counted = (slot for slot in desk.of(asked.key) if slot.phase is not Phase.STALLED)
    return sum(1 for _ in counted) < asked.policy.replicas


def _load_first(desk: Desk, asked: Asked, reserved: int, ahead: set[str] | None) -> int:
    """Start a model that has no runner, or make room; gives the bytes to reserve for it.

    `ahead`: the models whose waiters came before, if its own have waited long enough to claim the
    memory of others.
    """
    if desk.short and desk.slots:
        return asked.needs  # The machine is short of memory: only alone would it be any use.
    free, stopping = desk.free() - reserved, desk.held_in(Phase.STOPPING)
    # After a load ran out of memory the figures are not to be trusted: wait for the room.
    cramped = desk.crashes_of(asked.key).cramped
    if asked.needs <= free and not (stopping and cramped):
        _start(desk, asked)
        return 0
    if _make_room(desk, asked.needs - free - stopping):
        return asked.needs
    if ahead is None:
        return 0
    _claim(desk, asked.needs - free - stopping - desk.held_in(Phase.RETIRING), ahead)
    return asked.needs


def _make_room(desk: Desk, bytes_short: int) -> bool:
    """Stop idle runners for what is short; none if that is not enough."""
    victims: list[Slot] = []
    for slot in desk.by_value():
        if bytes_short > 0:
            victims.append(slot)
            bytes_short -= slot.memory
    if bytes_short <= 0:
        for slot in victims:
            desk.stop(slot, Why.EVICTED)
    return bytes_short <= 0


def _claim(desk: Desk, bytes_short: int, ahead: set[str]) -> None:
    """Have others go for what is short, busy ones too, once they have served whom they serve.

    Of these the oldest first, so that each model has its turn; but none that is waited for by
    those who came before, or models would take turns for every request.
    """
    busy = [
        slot
        for slot in desk.slots.values()
        if slot.leases
        and slot.phase in (Phase.SERVING, Phase.STALLED)
        and not (slot.pinned or slot.key in ahead)
    ]
    for slot in (*desk.by_value(), *busy):
        if bytes_short > 0:
            desk.retire(slot, Why.EVICTED)
            bytes_short -= slot.memory


def _start(desk: Desk, asked: Asked) -> None:
    desk.started += 1
    runner, now = f"r{desk.started}", desk.now
    stay = desk.asked_keep_alive(asked)
    slot = Slot(runner, asked.key, asked.name, asked.needs, asked.policy, stay, now, idle_since=now)
    desk.slots[runner] = replace(slot, extra=_has_usable(desk, asked.key))
    desk.actions.append(Start(runner, asked.key))
