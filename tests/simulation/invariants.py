"""What holds after every event. Told by the world's own books, as far as these go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import (
    CircuitOpen,
    DeadlineUnreachable,
    Draining,
    InsufficientMemory,
    ModelTooLarge,
    QueueFull,
)
from headrace_server.scheduling.core import decide
from headrace_server.scheduling.events import (
    Action,
    Event,
    Exited,
    Grant,
    Pressure,
    Refuse,
    Start,
    Stop,
    Tick,
)
from headrace_server.scheduling.state import FOREVER, Asked, Crashes, Phase, Slot
from tests.simulation.scenario import BUDGET, bound_on_wait

if TYPE_CHECKING:
    from tests.simulation.world import World

_CALM = Crashes()
_GOING = (Phase.RETIRING, Phase.STOPPING)


def latest(world: World, ahead: int) -> float:
    """When one who asks now has waited too long."""
    return world.now + bound_on_wait(world.scenario, ahead)


def check(world: World, event: Event, actions: tuple[Action, ...]) -> None:
    """Raises AssertionError with what is wrong."""
    for action in actions:
        match action:
            case Grant(request, runner):
                _grant_is_right(world, request, runner)
            case Stop(runner, why):
                _stop_is_right(world, runner, why)
            case Start(runner):
                _start_is_right(world, runner, actions)
            case Refuse(request):
                _refusal_is_right(world, action)
    _world_and_state_agree(world)
    _every_request_ends_once(world)
    _nobody_goes_back(world)
    _queues_are_bounded(world)
    _memory_is_kept(world, event)
    if isinstance(event, Exited):
        _hopeless_are_told(world, event)
    _nobody_waits_for_what_is_free(world)
    _nobody_idle_has_outstayed(world)
    _nothing_due_is_slept_over(world)
    if world.events % 8 == 0:
        assert not decide(world.state, Tick(), world.now)[1], "something was left undone"


def _grant_is_right(world: World, request: int, runner: str) -> None:
    assert runner in world.serving, "granted a runner that does not serve"
    assert runner not in world.stalled, "granted a stalled runner"
    before = world.before.slots[runner]
    assert before.phase not in _GOING, "revived a victim"
    after = world.state.slots[runner]
    assert len(after.leases) <= after.policy.concurrency, "too many on one runner"
    others = [
        len(slot.leases)
        for slot in world.state.slots.values()
        if slot.key == before.key and slot.phase is Phase.SERVING and slot.has_place
    ]
    least = min(others, default=len(after.leases))
    assert len(after.leases) - least <= 4 or len(after.leases) <= 2 * least, "all to one runner"
    assert world.now <= world.bounds[request], "waited too long"
    for asked in world.state.waiting:
        if asked.key == before.key:
            assert _rank_of(world, asked.request) > _rank_of(world, request), "overtaken"


def _rank_of(world: World, request: int) -> tuple[bool, int, int]:
    moved, priority = world.ranks[request]
    return not moved, -priority, request


def _stop_is_right(world: World, runner: str, why: str) -> None:
    slot = world.before.slots.get(runner)
    if slot is not None and why not in ("unloaded", "drained"):
        kept = _pinned(world.state.slots.get(runner, slot))
        movable = slot.extra or slot.phase in (Phase.LOADING, Phase.RETIRING)
        movable |= runner in world.stalled
        others = any(
            other.key == slot.key and other is not slot and other.phase is Phase.SERVING
            for other in world.state.slots.values()
        )
        assert not kept or movable or others, f"a pinned model was stopped: {why}"
    if why == "keep_alive":
        assert slot is not None
        stays = world.state.slots[runner].stays
        since = world.now if slot.leases or slot.phase is Phase.LOADING else slot.idle_since
        assert world.now >= since + stays, "stopped before its keep-alive was over"


def _start_is_right(world: World, runner: str, actions: tuple[Action, ...]) -> None:
    started = world.state.slots[runner]
    own = [slot for slot in world.state.slots.values() if slot.key == started.key]
    counted = [slot for slot in own if slot.runner not in world.stalled]
    assert len(counted) <= started.policy.replicas, "more runners than there may be"
    assert _held(world) <= BUDGET, "started beyond the budget"
    waiters = [asked for asked in world.waiting.values() if asked.key == started.key]
    assert waiters, "started for nobody"
    first = next(asked for asked in world.state.waiting if asked.key == started.key)
    assert started.name == first.name, "named by another than the one that it is for"
    if world.state.draining:
        assert any(asked.moved for asked in waiters), "started for a new one while draining"
    if any(slot.usable for slot in own if slot is not started):
        # A victim of the same event made room for another's load, or was due in any case.
        evicted = [action for action in actions if isinstance(action, Stop)]
        for_it = any(action.why == "evicted" for action in evicted)
        assert not for_it or _others_wait(world, started), "evicted for a further runner"
    if world.state.short:
        assert len(world.state.slots) == 1, "loaded while the machine is short of memory"
    crashes = world.state.crashes.get(started.key, _CALM)
    assert world.now >= crashes.retry_at, "started within its backoff"
    limits, failures = world.scenario.limits, world.failures.get(started.key, [])
    lately = sum(world.now - time < limits.crash_window for time in failures)
    if max(lately, world.failed_loads.get(started.key, 0)) >= limits.max_crashes:
        assert world.now >= failures[-1] + limits.cooldown, "started though its circuit is open"


def _others_wait(world: World, started: Slot) -> bool:
    over = _held(world) - _held(world, Phase.STOPPING)
    return over > BUDGET / 2 or any(a.key != started.key for a in world.waiting.values())


def _refusal_is_right(world: World, refused: Refuse) -> None:
    asked = next(
        (asked for asked in world.before.waiting if asked.request == refused.request), None
    )
    match refused.error:
        case DeadlineUnreachable() if "estimates" not in world.scenario.traits and asked:
            assert asked.deadline <= world.now, "refused before its time"
        case DeadlineUnreachable():
            assert "deadlines" in world.scenario.traits, "refused for a deadline it has not"
        case CircuitOpen():
            limits = world.scenario.limits
            recent = max((len(times) for times in world.crashes.values()), default=0)
            assert recent >= limits.max_crashes, "the circuit opened for one that got things done"
        case QueueFull():
            limits, waiting = world.scenario.limits, world.before.waiting
            least = min(limits.queue_per_model, limits.queue_total)
            assert len(waiting) >= least, "refused for a queue that is not full"
            moved, _ = world.ranks[refused.request]
            assert not moved, "a queue was too full for one who moves"
        case Draining():
            assert world.state.draining, "refused for a drain that is not"
            moved, _ = world.ranks[refused.request]
            assert world.state.closed or not moved, "a stream that moves was lost to a drain"
        case InsufficientMemory():
            assert "pins" in world.scenario.traits, "memory was there to be had"
        case ModelTooLarge():
            largest = max(model.needs for model in world.scenario.models)
            assert largest > BUDGET, "refused though it fits"


def _world_and_state_agree(world: World) -> None:
    state = world.state
    assert len(world.waiting) == len(state.waiting), "a waiter is lost, or twice there"
    assert all(a.request in world.waiting for a in state.waiting), "a waiter is not known"
    leases = {r: slot.runner for slot in state.slots.values() for r in slot.leases}
    assert leases == world.served, "a request is lost, or on two runners"
    alive = len(world.loading) + len(world.serving) + len(world.stopping)
    assert len(state.slots) == alive, "a runner is lost"
    served: list[Slot | Asked] = [*state.slots.values(), *state.waiting]
    for one in served:
        assert one.policy == world.policies[one.key], "served by the policy of before"
    for slot in state.slots.values():
        if slot.phase in (Phase.SERVING, Phase.STALLED):
            assert slot.runner in world.serving, "taken for serving"
            stalled = slot.runner in world.stalled
            assert stalled is (slot.phase is Phase.STALLED), "health is not known"


def _every_request_ends_once(world: World) -> None:
    known = len(world.over) + len(world.waiting) + len(world.served)
    assert known == world.requests, "a request ended twice, or never"
    assert world.over.isdisjoint(world.waiting), "ended, and waits"
    assert world.over.isdisjoint(world.served), "ended, and is served"


def _nobody_goes_back(world: World) -> None:
    for runner, slot in world.before.slots.items():
        if slot.phase in _GOING and runner in world.state.slots:
            assert world.state.slots[runner].phase in _GOING, "a victim was revived"


def _queues_are_bounded(world: World) -> None:
    limits = world.scenario.limits
    waiting = [asked for asked in world.state.waiting if not asked.moved]
    assert len(waiting) <= limits.queue_total, "too many wait"
    for model in world.scenario.models:
        own = sum(asked.key == model.key for asked in waiting)
        assert own <= limits.queue_per_model, "too many wait for one model"


def _memory_is_kept(world: World, event: Event) -> None:
    """Over the budget only by what reports revealed; then all who are idle go."""
    staying = _held(world) - _held(world, Phase.STOPPING)
    assert staying <= BUDGET or not _idle(world), "over the budget, with idle ones to spare"
    if "lies" not in world.scenario.traits:
        assert _held(world) <= BUDGET, "over the budget"
    if isinstance(event, Pressure) and event.short > 0:
        going = _held(world, Phase.STOPPING)
        assert going >= event.short or not _idle(world), "pressed, with idle ones to spare"


def _hopeless_are_told(world: World, event: Exited) -> None:
    slot = world.before.slots[event.runner]
    own = [other for other in world.before.slots_of(slot.key) if other.usable]
    if slot.phase is Phase.LOADING and own == [slot]:
        failed = world.failed_loads.get(slot.key, 0)
        hopeless = failed >= world.scenario.limits.max_crashes
        if event.cause == "LOAD_FAILED" or hopeless:
            waiting = any(asked.key == slot.key for asked in world.state.waiting)
            assert not waiting, "waits for a load that cannot succeed"


def _nobody_waits_for_what_is_free(world: World) -> None:
    state, now = world.state, world.now
    if not state.waiting:
        return
    slots = state.slots.values()
    # Memory that is being freed belongs to those for whom it is.
    quiet = not any(slot.phase is Phase.STOPPING for slot in slots)
    hopeful = quiet and not (state.short and slots)
    free = BUDGET - _held(world)
    idle = sum(slot.memory for slot in _idle(world))
    reserved = 0
    further = []
    ahead: set[str] = set()
    since: dict[str, float] = {}
    for asked in state.waiting:
        since[asked.key] = min(asked.since, since.get(asked.key, asked.since))
    for asked in state.waiting:
        assert now < asked.deadline, "waits beyond its deadline"
        key = asked.key
        if key in ahead:
            continue
        own = [slot for slot in slots if slot.key == key]
        for slot in own:
            full = len(slot.leases) >= slot.policy.concurrency
            assert slot.phase is not Phase.SERVING or full, "waits for a place that is there"
        counted = sum(slot.phase is not Phase.STALLED for slot in own)
        waits = now < state.crashes.get(key, _CALM).retry_at or counted >= asked.policy.replicas
        if hopeful and not waits:
            if any(slot.usable for slot in own):
                further.append(asked)
            else:
                assert asked.needs > free - reserved + idle, "waits for memory that is there"
                if now >= since[key] + state.limits.patience:
                    _claim_is_served(world, asked.needs - free + reserved, ahead)
                    reserved += asked.needs
        ahead.add(key)
    for asked in further:
        if not any(s.key == asked.key and s.phase is Phase.LOADING for s in slots):
            assert asked.needs > free - reserved, "waits for another runner that would fit"


def _claim_is_served(world: World, short: int, ahead: set[str]) -> None:
    movable = [
        slot
        for slot in world.state.slots.values()
        if slot.phase in (Phase.SERVING, Phase.STALLED)
        and slot.key not in ahead
        and not slot.pinned
    ]
    assert short <= _held(world, Phase.RETIRING) or not movable, "his patience is over, and no turn"


def _nobody_idle_has_outstayed(world: World) -> None:
    state, now = world.state, world.now
    for slot in state.slots.values():
        assert slot.expires_at > now, "outstayed"
        if state.draining and slot.phase is not Phase.STOPPING and not slot.leases:
            wanted = any(asked.key == slot.key for asked in state.waiting)
            assert wanted, "drains, and keeps a runner that nobody needs"
        if slot.runner in world.unloaded:
            assert slot.phase in (*_GOING, Phase.LOADING), "unloaded, and serves on"
        if slot.extra and slot.usable and not slot.leases:
            own = [other for other in state.slots_of(slot.key) if other.usable]
            wanted = any(asked.key == slot.key for asked in state.waiting)
            assert wanted or len(own) <= slot.policy.replicas, "one too many, and idle"


def _nothing_due_is_slept_over(world: World) -> None:
    state, now = world.state, world.now
    wake = state.wake_at(now)
    assert wake > now, "wants to be woken in the past"
    for asked in state.waiting:
        assert wake <= asked.deadline, "would sleep over a deadline"
        claim = asked.since + state.limits.patience
        assert wake <= claim or claim <= now, "would sleep over the end of a patience"
        retry_at = state.crashes.get(asked.key, _CALM).retry_at
        assert wake <= retry_at or retry_at <= now, "would sleep over the end of a backoff"
    for slot in state.slots.values():
        if slot.idle and not slot.leases and not (slot.pinned or slot.stays == FOREVER):
            assert wake <= slot.idle_since + slot.stays, "would sleep over a keep-alive"


def _held(world: World, phase: Phase | None = None) -> int:
    slots = world.state.slots.values()
    return sum(slot.memory for slot in slots if phase is None or slot.phase is phase)


def _idle(world: World) -> list[Slot]:
    """Who could go at once, as the world sees it."""
    busy = set(world.served.values())
    return [
        slot
        for slot in world.state.slots.values()
        if slot.runner in world.serving
        and slot.runner not in busy
        and slot.phase in (Phase.SERVING, Phase.STALLED)
        and (slot.phase is Phase.STALLED or slot.extra or not _pinned(slot))
    ]


def _pinned(slot: Slot) -> bool:
    return slot.policy.pinned or slot.keep_alive == FOREVER
