"""Requests and runners around the core, which do as they are told, each at its own pace."""

import heapq
import math
from collections.abc import Callable
from random import Random
from typing import Any

from headrace.errors import LoadFailed
from headrace_server.scheduling.core import decide
from headrace_server.scheduling.events import (
    Action,
    Advanced,
    Drain,
    Event,
    Exited,
    Grant,
    Leaving,
    Left,
    Loaded,
    Measured,
    Policed,
    Pressure,
    Recovered,
    Refuse,
    Stalled,
    Start,
    Stop,
    Tick,
    Unload,
)
from headrace_server.scheduling.state import FOREVER, Asked, Phase, State
from headrace_server.scheduling.timing import Pace
from tests.simulation import invariants
from tests.simulation.scenario import LOAD, SERVICE, STOP, Model, draw, draw_policy

MOST_EVENTS = 4000
"""More of them in one schedule, and the core goes round in circles."""

_CAUSES = ("EXITED", "SIGNAL", "OUT_OF_MEMORY", "OUT_OF_MEMORY", "LOAD_FAILED", "NATIVE_ABORT")

Transition = tuple[str, str, str]
"""From a phase, by a cause, to a phase; "" before the start and after the end."""


class World:
    """One schedule."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.random = Random(seed)
        self.scenario = draw(seed, self.random)
        self.state = State(self.scenario.limits)
        self.before = self.state
        self.now = 0.0
        self.behaving = False
        """Whether all goes well from here on."""
        self.waiting: dict[int, Asked] = {}
        self.served: dict[int, str] = {}
        """The runner of each request that has one."""
        self.over: set[int] = set()
        self.policies = {model.key: model.policy for model in self.scenario.models}
        self.requests = 0
        self.ranks: dict[int, tuple[bool, int]] = {}
        self.bounds: dict[int, float] = {}
        """When a wait is too long."""
        self.loading: set[str] = set()
        self.serving: set[str] = set()
        self.stopping: set[str] = set()
        self.stalled: set[str] = set()
        self.advanced: set[str] = set()
        self.crashes: dict[str, list[float]] = {}
        """When runners of a model crashed that had got nothing done, since one last did."""
        self.failures: dict[str, list[float]] = {}
        """The same, since one last loaded as well; without those that no other try could mend."""
        self.failed_loads: dict[str, int] = {}
        """Loads that failed in a row; of these too, without those."""
        self.unloaded: set[str] = set()
        self.events = 0
        self.transitions: set[Transition] = set()
        self._trace = trace
        self._agenda: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._entries = 0
        self._ticks_at = math.inf

    def run(self) -> None:
        """Live the schedule to its end. Raises AssertionError where an invariant breaks."""
        self._plan()
        self._go_on()
        assert not self.waiting, f"waits for ever: {sorted(self.waiting)}"
        assert not self.served, "a request that was served never ended"
        self.tell(Drain())
        self._go_on()
        assert not self.state.slots, "a runner was left behind"
        assert len(self.over) == self.requests, "a request was left behind"

    def _plan(self) -> None:
        scenario, random = self.scenario, self.random
        time = 0.0
        for _ in range(scenario.requests):
            time += random.expovariate(1 / scenario.pause)
            self._at(time, self._ask, random.choice(scenario.models))
        for trait, happening, times in (
            ("unloads", self._unload, 5),
            ("departures", self._depart, 3),
            ("policies", self._police, 3),
            ("pressure", self._press, 2),
            ("lies", self._measure, 4),
        ):
            if trait in scenario.traits:
                for _ in range(times):
                    self._at(random.uniform(0, time), happening)
        if "drain" in scenario.traits:
            self._at(random.uniform(0, 1.5 * time), self._drain)
        self._at(time, self._behave)

    def _at(self, time: float, act: Callable[..., None], *arguments: Any) -> None:
        self._entries += 1
        heapq.heappush(self._agenda, (time, self._entries, act, arguments))

    def _in(self, most: float, act: Callable[..., None], *arguments: Any) -> None:
        self._at(self.now + self.random.uniform(0.05, 1.0) * most, act, *arguments)

    def _go_on(self) -> None:
        while self._agenda:
            self.now, _, act, arguments = heapq.heappop(self._agenda)
            act(*arguments)

    def tell(self, event: Event) -> None:
        """Let the core decide, do as it says, and see whether that is right."""
        self.before = self.state
        self.state, actions = decide(self.state, event, self.now)
        self.events += 1
        assert self.events < MOST_EVENTS, "the core goes round in circles"
        if self._trace:
            self._print(event, actions)
        for action in actions:
            self._do(action)
        invariants.check(self, event, actions)
        self._watch_phases(event, actions)
        wake = self.state.wake_at(self.now)
        if wake < self._ticks_at:
            self._ticks_at = wake
            self._at(wake, self._tick, wake)

    def _do(self, action: Action) -> None:
        random, traits = self.random, self.scenario.traits
        match action:
            case Start(runner):
                self.loading.add(runner)
                if "crashes" in traits and not self.behaving and random.random() < 0.4:
                    self._in(LOAD, self._exit, runner, random.choice(_CAUSES))
                else:
                    self._in(LOAD, self._load, runner)
            case Stop(runner):
                assert runner not in self.served.values(), "a busy runner was stopped"
                assert runner in self.loading | self.serving, "stopped twice"
                self.loading.discard(runner)
                self.serving.discard(runner)
                self.stopping.add(runner)
                self._in(STOP, self._exit, runner, "EXITED")
            case Grant(request, runner):
                del self.waiting[request]
                self.served[request] = runner
                if random.random() < 0.8:
                    self._in(0.5, self._advance, runner, request)
                self._in(SERVICE, self._leave, request)
            case Refuse(request):
                del self.waiting[request]
                self.over.add(request)

    # What happens by itself.

    def _ask(self, model: Model, *, moved: bool = False) -> None:
        random, traits = self.random, self.scenario.traits
        self.requests += 1
        keep_alive: float | None = None
        if random.random() < 0.3:
            keep_alive = random.choice((0.0, 2.0, 60.0, FOREVER if "pins" in traits else 5.0))
        deadline = math.inf
        if "deadlines" in traits and random.random() < 0.5:
            deadline = self.now + random.choice((0.0, 1.0, 3.0, 8.0))
        asked = Asked(
            self.requests,
            model.key,
            f"{model.key} by request {self.requests}",
            model.needs,
            self.policies[model.key],
            keep_alive,
            random.choice((0, 0, 1)) if "priorities" in traits else 0,
            deadline,
            tuple(random.randint(0, 2) for _ in range(random.randint(0, 3))),
            Pace(*(random.choice((0.0, 0.5, 2.0)) for _ in "123"))
            if "estimates" in traits
            else Pace(),
            moved or ("crashes" in traits and random.random() < 0.2),
        )
        self.ranks[asked.request] = asked.rank
        self.bounds[asked.request] = invariants.latest(self, len(self.waiting))
        self.waiting[asked.request] = asked
        self.tell(asked)
        if "cancels" in traits and random.random() < 0.3:
            self._in(4.0, self._leave, asked.request)

    def _leave(self, request: int) -> None:
        if request in self.waiting or request in self.served:
            self.waiting.pop(request, None)
            self.served.pop(request, None)
            self.over.add(request)
            self.tell(Left(request))

    def _load(self, runner: str) -> None:
        random, traits = self.random, self.scenario.traits
        if runner in self.stopping:
            self.tell(Loaded(runner))  # Late news, as of any race.
        if runner not in self.loading:
            return
        self.loading.remove(runner)
        self.serving.add(runner)
        self.failures.pop(self.state.slots[runner].key, None)
        self.failed_loads.pop(self.state.slots[runner].key, None)
        held = self.state.slots[runner].memory
        lies = "lies" in traits
        self.tell(Loaded(runner, random.choice((None, held // 2, held * 2) if lies else (held,))))
        if self.behaving:
            return
        if "crashes" in traits and random.random() < 0.5:
            self._in(6.0, self._exit, runner, random.choice(_CAUSES))
        if "stalls" in traits and random.random() < 0.8:
            self._in(4.0, self._stall, runner)

    def _advance(self, runner: str, request: int) -> None:
        if self.served.get(request) == runner and runner not in self.stalled | self.advanced:
            self.advanced.add(runner)
            self.failures.pop(self.state.slots[runner].key, None)
            self.failed_loads.pop(self.state.slots[runner].key, None)
            self.crashes.pop(self.state.slots[runner].key, None)
            self.tell(Advanced(runner))

    def _stall(self, runner: str) -> None:
        if runner in self.serving:
            self.stalled.add(runner)
        self.tell(Stalled(runner))
        if runner in self.serving:
            if self.random.random() < 0.7:
                self._in(2.0, self._recover, runner)
            else:
                self._in(3.0, self._exit, runner, "STALLED")

    def _recover(self, runner: str) -> None:
        self.stalled.discard(runner)
        self.tell(Recovered(runner))
        if runner in self.serving and not self.behaving:
            self._in(4.0, self._stall, runner)

    def _exit(self, runner: str, cause: str) -> None:
        if runner not in self.loading | self.serving | self.stopping:
            return
        slot = self.state.slots[runner]
        if slot.phase is not Phase.STOPPING and runner not in self.advanced:
            self.crashes.setdefault(slot.key, []).append(self.now)
            if cause != "LOAD_FAILED":
                self.failures.setdefault(slot.key, []).append(self.now)
                if runner in self.loading:
                    self.failed_loads[slot.key] = self.failed_loads.get(slot.key, 0) + 1
        for runners in (self.loading, self.serving, self.stopping, self.stalled):
            runners.discard(runner)
        # The requests hear of it by themselves, one by one, later; so does the core.
        orphans = [r for r, served_by in self.served.items() if served_by == runner]
        for request in orphans:
            del self.served[request]
            self.over.add(request)
        self.tell(Exited(runner, cause, LoadFailed("it failed", cause=cause)))
        for request in orphans:
            self.tell(Left(request))
            if self.random.random() < 0.5:  # Its stream goes on elsewhere.
                model = next(m for m in self.scenario.models if m.key == slot.key)
                self._ask(model, moved=True)

    def _unload(self) -> None:
        key = self.random.choice(self.scenario.models).key
        self.unloaded.update(slot.runner for slot in self.state.slots_of(key))
        self.tell(Unload(key))

    def _depart(self) -> None:
        if self.serving:
            self.tell(Leaving(self.random.choice(sorted(self.serving))))

    def _drain(self) -> None:
        self.tell(Drain())
        if self.random.random() < 0.3:
            self._in(8.0, self.tell, Drain(moves=False))

    def _police(self) -> None:
        model = self.random.choice(self.scenario.models)
        policy = draw_policy(model.policy.concurrency, self.scenario.traits, self.random)
        self.policies[model.key] = policy
        self.tell(Policed(model.key, policy))

    def _press(self) -> None:
        self.tell(Pressure(self.random.choice((5, 40, 200))))
        self._in(5.0, self.tell, Pressure(0))

    def _measure(self) -> None:
        if self.serving:
            runner = self.random.choice(sorted(self.serving))
            factor = self.random.choice((0.5, 1.0, 1.5, 2.0))
            self.tell(Measured(runner, int(factor * self.state.slots[runner].memory)))

    def _behave(self) -> None:
        self.behaving = True

    def _tick(self, due: float) -> None:
        if due == self._ticks_at:
            self._ticks_at = math.inf
            self.tell(Tick())

    # For those who watch.

    def _watch_phases(self, event: Event, actions: tuple[Action, ...]) -> None:
        before, after = self.before.slots, self.state.slots
        reasons = {action.runner: action.why for action in actions if isinstance(action, Stop)}
        for runner in (*before.keys(), *(after.keys() - before.keys())):
            was, now = before.get(runner), after.get(runner)
            old, new = was.phase if was else None, now.phase if now else None
            if old is new:
                continue
            cause = type(event).__name__
            if new is Phase.LOADING:
                cause = "Start"
            elif now is not None and now.going_for is not None and new is Phase.RETIRING:
                cause = now.going_for
            elif runner in reasons:
                cause = reasons[runner]
            self.transitions.add((old.name if old else "", cause, new.name if new else ""))

    def _print(self, event: Event, actions: tuple[Action, ...]) -> None:
        print(f"{self.now:8.2f}  {event}")
        for action in actions:
            print(f"          → {action}")
