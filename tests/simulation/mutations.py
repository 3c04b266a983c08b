"""Ways to break the core: each a small change of its source, which the simulation has to notice."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

from headrace_server.scheduling import core, desk, hearing, settling, state
from tests.simulation.runs import BrokenError, run


@dataclass(frozen=True)
class Mutation:
    """One broken core."""

    what: str
    module: ModuleType
    old: str
    """Stands once in the module's source."""
    new: str


MUTATIONS = (
    # Places and their order.
    Mutation("a runner serves one too many", state, "len(self.leases) <", "len(self.leases) <="),
    Mutation(
        "a victim is revived",
        state,
        "return self.phase is Phase.SERVING and len",
        "return self.phase in (Phase.SERVING, Phase.RETIRING) and len",
    ),
    Mutation(
        "a stalled runner is granted",
        state,
        "return self.phase is Phase.SERVING and len",
        "return self.phase in (Phase.SERVING, Phase.STALLED) and len",
    ),
    Mutation(
        "the last come is served first",
        settling,
        "for asked in tuple(desk.waiting):\n        if asked.key in full",
        "for asked in reversed(desk.waiting):\n        if asked.key in full",
    ),
    Mutation(
        "priorities do not count",
        hearing,
        "if other.rank < asked.rank",
        "if other.rank < (False, 0)",
    ),
    Mutation(
        "a queue is too full for one who moves",
        hearing,
        "if not asked.moved and len(desk.waiting)",
        "if len(desk.waiting)",
    ),
    Mutation("nobody is served", settling, "        if places:", "        if not places:"),
    Mutation(
        "a place is not given back",
        hearing,
        "leases=slot.leases - {request}",
        "leases=slot.leases",
    ),
    Mutation(
        "nobody looks whether queues are full",
        hearing,
        ">= limits.queue_per_model",
        "> limits.queue_per_model",
    ),
    # Time.
    Mutation(
        "deadlines pass unseen",
        settling,
        "if asked.deadline <= desk.now",
        "if asked.deadline < 0",
    ),
    Mutation(
        "nobody wakes for a deadline",
        state,
        "*(asked.deadline for asked in self.waiting),",
        "",
    ),
    Mutation(
        "nobody wakes when a patience ends",
        state,
        "*(asked.since + self.limits.patience for asked in self.waiting),",
        "",
    ),
    Mutation(
        "nobody wakes when a backoff ends",
        state,
        "*(c.retry_at for key, c in self.crashes.items() if key in wanted),",
        "",
    ),
    Mutation(
        "keep-alives never end",
        settling,
        "elif slot.expires_at <= desk.now",
        "elif slot.expires_at < 0",
    ),
    Mutation("no patience ends", settling, "if ahead is None:", "if ahead is None or True:"),
    Mutation(
        "a backoff is not kept",
        settling,
        "if desk.now < desk.crashes_of(asked.key).retry_at",
        "if desk.now < 0",
    ),
    # Memory.
    Mutation(
        "loads do not look at memory",
        settling,
        "if asked.needs <= free and not (stopping and cramped):",
        "if not (stopping and cramped):",
    ),
    Mutation(
        "what is freed for one is taken by another",
        settling,
        "return asked.needs\n    if ahead is None",
        "return 0\n    if ahead is None",
    ),
    Mutation(
        "nobody idle makes room",
        settling,
        "if _make_room(desk, asked.needs - free - stopping):",
        "if not stopping and False:",
    ),
    Mutation(
        "the busy are evicted",
        state,
        "return not self.leases and self.phase in",
        "return self.phase in",
    ),
    Mutation(
        "the pinned are evicted",
        state,
        "return self.idle and (self.phase is Phase.STALLED or not self.pinned)",
        "return self.idle",
    ),
    Mutation(
        "a larger report makes nobody go", settling, "if over > desk.limits.memory:", "if over < 0:"
    ),
    Mutation("pressure makes nobody go", hearing, "if slot.evictable and short > 0:", "if False:"),
    Mutation(
        "models are loaded under pressure", settling, "if desk.short and desk.slots:", "if False:"
    ),
    # Runners.
    Mutation(
        "a further runner makes others go",
        settling,
        "if not loading and not desk.short and asked.needs <= desk.free() - reserved:",
        "if not loading and not desk.short and _make_room(desk, asked.needs - desk.free()):",
    ),
    Mutation(
        "a further runner is never started",
        settling,
        "if not loading and not desk.short and asked.needs <= desk.free() - reserved:",
        "if False:",
    ),
    Mutation(
        "one runner too many",
        settling,
        "return sum(1 for _ in counted) < asked.policy.replicas",
        "return sum(1 for _ in counted) <= asked.policy.replicas",
    ),
    Mutation(
        "nobody stands in for a stalled runner",
        settling,
        "if slot.phase is not Phase.STALLED)\n    return sum",
        ")\n    return sum",
    ),
    Mutation("one too many stays", settling, "elif _surplus(desk, slot):", "elif False:"),
    Mutation(
        "a runner that retires is never stopped",
        hearing,
        "if slot.going_for is not None:",
        "if False:",
    ),
    Mutation("an unload is not heard", hearing, "desk.retire(slot, Why.UNLOADED)", "pass"),
    Mutation(
        "a drain leaves runners",
        settling,
        "elif desk.draining and not slot.leases and",
        "elif False and",
    ),
    Mutation(
        "a drain ends who moves",
        hearing,
        "if desk.closed or not asked.moved:",
        "if True:",
    ),
    Mutation(
        "a drain refuses who moves",
        hearing,
        "if desk.closed or (desk.draining and not asked.moved):",
        "if desk.draining:",
    ),
    Mutation(
        "a drain lets everybody in",
        hearing,
        "if desk.closed or (desk.draining and not asked.moved):",
        "if desk.closed:",
    ),
    Mutation(
        "who recovers is not heard",
        hearing,
        "desk.put(slot, phase=Phase.SERVING)\n        case Exited",
        "pass\n        case Exited",
    ),
    # Crashes.
    Mutation("progress does not count", hearing, "    if slot.advanced:", "    if False:"),
    Mutation(
        "loads that take long to fail are forgotten",
        state,
        "count = max(len(times), failed_loads)",
        "count = len(times)",
    ),
    Mutation(
        "the circuit never opens",
        state,
        "if count >= limits.max_crashes:",
        "if not limits.max_crashes:",
    ),
    Mutation(
        "lack of memory stops the busy",
        hearing,
        "            if other.evictable:",
        "            if True:",
    ),
    Mutation(
        "who waits for a load that cannot succeed waits on",
        hearing,
        "desk.refuse_all(key, event.error)\n        return",
        "return",
    ),
)


@contextmanager
def broken(mutation: Mutation) -> Iterator[None]:
    """Within this, the core is broken."""
    source = inspect.getsource(mutation.module)
    assert source.count(mutation.old) == 1, f"{mutation.what}: the source has changed"
    changed = dict(vars(mutation.module))
    # The module's own name: what is defined under it is taken for what it replaces.
    exec(compile(source.replace(mutation.old, mutation.new), mutation.what, "exec"), changed)  # noqa: S102
    undo: list[tuple[Any, str, Any]] = []

    def put(where: Any, name: str, value: Any) -> None:
        undo.append((where, name, getattr(where, name)))
        setattr(where, name, value)

    if mutation.module is state:
        # The classes stay what they are, and the values of them; their methods change.
        for kind in (state.Slot, state.Crashes, state.State):
            for name, member in vars(changed[kind.__name__]).items():
                if isinstance(member, property) and member.fget is not None:
                    put(kind, name, property(_of_state(member.fget)))
                elif isinstance(member, FunctionType) and name[0] != "_":
                    put(kind, name, _of_state(member))
    else:
        name = {hearing: "hear", settling: "settle", desk: "Desk"}[mutation.module]
        put(core, name, changed[name])
    try:
        yield
    finally:
        for where, name, value in reversed(undo):
            setattr(where, name, value)


def _of_state(method: Any) -> Any:
    """The same method, at home in the unbroken module."""
    moved = FunctionType(method.__code__, vars(state), method.__name__, method.__defaults__)
    moved.__kwdefaults__ = method.__kwdefaults__
    return moved


def seeds_until_noticed(mutation: Mutation, most: int) -> int | None:
    """How many schedules it takes; None if all of them go well."""
    with broken(mutation):
        for seed in range(most):
            try:
                run(seed)
            except BrokenError:
                return seed + 1
    return None
