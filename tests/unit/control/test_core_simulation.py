"""The scheduling core under random schedules on a virtual clock: what holds after every event."""

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import LoadFailed
from headrace_server.scheduling.core import decide
from headrace_server.scheduling.state import (
    FOREVER,
    Asked,
    Crashes,
    Drain,
    Event,
    Exited,
    Grant,
    Left,
    Limits,
    Loaded,
    Phase,
    Refuse,
    Start,
    State,
    Stop,
    Tick,
    Unload,
)

BUDGET = 100
NEEDS = {"a": 30, "b": 40, "c": 55, "d": 100, "e": 101}
CAUSES = ["EXITED", "SIGNAL", "OUT_OF_MEMORY", "LOAD_FAILED", "NATIVE_ABORT"]


class World:
    """Requests and runners around the core, which do as they are told, at any pace."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.state = State(
            Limits(
                BUDGET,
                concurrency=self.random.randint(1, 3),
                queue_per_model=3,
                queue_total=6,
                max_crashes=self.random.choice([2, 20]),
            )
        )
        self.now = 0.0
        self.requests = 0
        self.waiting: set[int] = set()
        self.served: dict[int, str] = {}
        self.over: set[int] = set()
        self.loading: set[str] = set()
        self.serving: set[str] = set()
        self.stopping: set[str] = set()
        self.unloaded: set[str] = set()

    def tell(self, event: Event) -> None:
        self.state, actions = decide(self.state, event, self.now)
        for action in actions:
            match action:
                case Start(runner):
                    self.loading.add(runner)
                case Stop(runner):
                    assert runner not in self.served.values(), "a busy runner was stopped"
                    assert runner in self.loading | self.serving, "stopped twice"
                    self.loading.discard(runner)
                    self.serving.discard(runner)
                    self.stopping.add(runner)
                case Grant(request, runner):
                    assert runner in self.serving, "a runner that does not serve was granted"
                    self.waiting.remove(request)
                    self.served[request] = runner
                    sharing = list(self.served.values()).count(runner)
                    assert sharing <= self.state.limits.concurrency, "too many on one runner"
                case Refuse(request):
                    self.waiting.remove(request)
                    self.over.add(request)

    def step(self) -> None:
        happenings = {
            self.ask: 8,
            self.leave: 5,
            self.load: 6,
            self.stop: 5,
            self.crash: 1,
            self.unload: 0.5,
            self.pass_time: 2,
        }
        (happening,) = self.random.choices(list(happenings), list(happenings.values()))
        happening()

    def ask(self) -> None:
        choose = self.random.choice
        self.requests += 1
        self.waiting.add(self.requests)
        key = choose(list(NEEDS))
        keep_alive = choose([None, None, None, 0.0, 5.0, 60.0, FOREVER if key == "a" else None])
        deadline = self.now + choose([math.inf, math.inf, 3.0, 0.0])
        self.tell(Asked(self.requests, key, NEEDS[key], keep_alive, choose([0, 0, 1]), deadline))

    def leave(self) -> None:
        if here := sorted({*self.waiting, *self.served}):
            self.left(self.random.choice(here))

    def left(self, request: int) -> None:
        self.waiting.discard(request)
        self.served.pop(request, None)
        self.over.add(request)
        self.tell(Left(request))

    def load(self) -> None:
        if self.loading:
            runner = self.random.choice(sorted(self.loading))
            self.loading.remove(runner)
            self.serving.add(runner)
            held = self.state.slots[runner].memory
            self.tell(Loaded(runner, self.random.choice([None, held, held // 2])))

    def stop(self) -> None:
        if self.stopping:
            self.exit(self.random.choice(sorted(self.stopping)), "EXITED")

    def crash(self) -> None:
        if alive := sorted(self.loading | self.serving):
            self.exit(self.random.choice(alive), self.random.choice(CAUSES))

    def exit(self, runner: str, cause: str) -> None:
        for runners in (self.loading, self.serving, self.stopping):
            runners.discard(runner)
        # The requests hear of it by themselves, one by one, later.
        orphans = [r for r, served_by in self.served.items() if served_by == runner]
        for request in orphans:
            del self.served[request]
            self.over.add(request)
        self.tell(Exited(runner, cause, LoadFailed("it failed", cause=cause)))
        for request in orphans:
            self.tell(Left(request))

    def unload(self) -> None:
        key = self.random.choice(list(NEEDS))
        if slot := self.state.slot_of(key):
            self.unloaded.add(slot.runner)
        self.tell(Unload(key))

    def pass_time(self) -> None:
        self.now += self.random.choice([0.5, 2.0, 2.0, 40.0, 400.0])
        self.tell(Tick())

    def check(self) -> None:
        self.memory_is_never_over_budget()
        self.the_world_and_the_state_agree()
        self.every_request_ends_once()
        self.a_model_has_one_runner()
        self.nobody_waits_while_what_he_needs_is_free()
        self.nobody_idle_has_outstayed()
        self.who_was_unloaded_goes()
        self.who_waits_for_time_is_woken()

    def memory_is_never_over_budget(self) -> None:
        assert sum(slot.memory for slot in self.state.slots.values()) <= BUDGET

    def the_world_and_the_state_agree(self) -> None:
        assert self.waiting == {asked.request for asked in self.state.waiting}
        leases = {r: slot.runner for slot in self.state.slots.values() for r in slot.leases}
        assert leases == self.served
        assert set(self.state.slots) == self.loading | self.serving | self.stopping

    def every_request_ends_once(self) -> None:
        assert not self.over & (self.waiting | set(self.served))
        assert len(self.over) + len(self.waiting) + len(self.served) == self.requests

    def a_model_has_one_runner(self) -> None:
        keys = [slot.key for slot in self.state.slots.values()]
        assert len(keys) == len(set(keys))

    def nobody_waits_while_what_he_needs_is_free(self) -> None:
        limits = self.state.limits
        slots = self.state.slots.values()
        # Memory that is being freed belongs to those for whom it is.
        quiet = not any(slot.phase is Phase.STOPPING for slot in slots)
        free = BUDGET - sum(slot.memory for slot in slots)
        idle = sum(slot.memory for slot in slots if slot.evictable)
        for asked in self.state.waiting:
            slot = self.state.slot_of(asked.key)
            if slot is not None:
                full = len(slot.leases) >= limits.concurrency
                assert slot.phase is not Phase.SERVING or full
            elif quiet and self.now >= self.state.crashes.get(asked.key, Crashes()).retry_at:
                assert asked.needs > free + idle

    def nobody_idle_has_outstayed(self) -> None:
        assert all(slot.expires_at > self.now for slot in self.state.slots.values())

    def who_was_unloaded_goes(self) -> None:
        for runner in self.unloaded & set(self.state.slots):
            assert self.state.slots[runner].phase is not Phase.SERVING

    def who_waits_for_time_is_woken(self) -> None:
        wake = self.state.wake_at(self.now)
        assert wake > self.now
        for asked in self.state.waiting:
            assert wake <= asked.deadline

    def end(self) -> None:
        self.tell(Drain())
        assert not self.waiting
        for request in list(self.served):
            self.left(request)
        for runner in list(self.stopping):
            self.exit(runner, "EXITED")
        assert not self.state.slots, "a runner was left behind"
        assert len(self.over) == self.requests, "a request was left behind"


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_under_random_schedules(seed: int) -> None:
    world = World(seed)
    for _ in range(300):
        world.step()
        world.check()
    world.end()
