"""The shell around the scheduling core: it feeds the core events and carries its orders out.

It decides nothing. It owns one task per runner, from its start until it is reaped, and answers
those who wait. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import replace

from opentelemetry import context as otel_context
from opentelemetry.trace import Link

from headrace.errors import CircuitOpen, HeadraceError
from headrace_server import measures
from headrace_server.runners.lifecycle import State as RunnerState
from headrace_server.scheduling.alarm import Alarm
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
    is_routine,
)
from headrace_server.scheduling.lives import Launcher, live
from headrace_server.scheduling.state import (
    Asked,
    Limits,
    Phase,
    Policy,
    Prefixes,
    Slot,
    State,
)
from headrace_server.scheduling.ticket import Life, Ticket, Wait, Wanted, begin_load
from headrace_server.scheduling.timing import Timings

logger = logging.getLogger(__name__)

_SERVES = (Phase.SERVING, Phase.STALLED)

TELLING_INTERVAL = 0.25
"""Seconds at least between two words about nothing but requests that come and go."""

MEMORY_INTERVAL = 5.0
"""Seconds between two looks at a busy runner's memory, and at the machine's. Caches grow with the
tokens of requests: in that time by little beside the margin of an estimate, and asking is cheap."""


class Scheduler:
    """Gives requests their runners. See `core` for the rules."""

    def __init__(
        self,
        limits: Limits,
        launcher: Launcher,
        on_change: Callable[[], None] = lambda: None,
        *,
        shortage: Callable[[], int] = lambda: 0,
        memory_interval: float = MEMORY_INTERVAL,
    ) -> None:
        """`on_change` is called after changes of who is loaded, once for those of one turn of the
        event loop, and now and then after changes of who is served. `shortage` gives the bytes that
        the machine itself is short of, 0 if it is not."""
        self._loop = asyncio.get_running_loop()
        self._launcher = launcher
        self._on_change = on_change
        self._telling = Alarm(self._tell)
        self._told_at = -math.inf
        self._state = State(limits)
        self._positions: dict[int, int] | None = None
        """Of the state, once somebody wants to know: all who wait look after each change."""
        self._requests = 0
        self._tickets: dict[int, Ticket] = {}
        self._policies: dict[str, Policy] = {}
        """By key. Those of models that are not known yet come with their requests."""
        self._current: set[str] = set()
        """Keys that models have now, as far as is known."""
        self._lives: dict[str, Life] = {}
        self._failed: dict[str, Link] = {}
        """The last load of each key, where that came to nothing: why others are refused."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._waking = Alarm(self._tick)
        self._timings = Timings()
        self._shortage = shortage
        self._memory_interval = memory_interval
        self._watching: asyncio.Task[None] | None = None
        self.changed: asyncio.Future[None] = self._loop.create_future()

    def now(self) -> float:
        """Seconds on the event loop's clock, the one that all times here are of."""
        return self._loop.time()

    def ask(
        self,
        wanted: Wanted,
        *,
        keep_alive: float | None = None,
        priority: int = 0,
        deadline: float = math.inf,
        prefixes: Prefixes = (),
        prompt_bytes: int = 0,
        moved: bool = False,
        loads: bool = False,
    ) -> Ticket:
        """A claim to a runner of `wanted`. It counts once it is entered.

        `prefixes` lead it to a runner that knows the prompt's beginning, where there are several.
        `moved`: it was being served, and its runner is lost. `loads`: it is to be loaded only.
        """
        self._requests += 1
        if not moved:  # One that moves may have been planned by the settings of before.
            self._current.add(wanted.key)
        asked = Asked(
            self._requests,
            wanted.key,
            wanted.name,
            wanted.needs,
            self._policies.get(wanted.key, wanted.policy),
            keep_alive,
            priority,
            deadline,
            prefixes,
            self._timings.pace(wanted.key, wanted.needs, prompt_bytes, self.now()),
            moved,
            loads,
        )
        return Ticket(self, asked, wanted, prompt_bytes)

    @property
    def state(self) -> State:
        """What the core knows: a value, to be looked at by any thread."""
        return self._state

    def runners(self) -> list[tuple[Slot, Life]]:
        """Every runner, for a look, the oldest first."""
        return [(slot, self._lives[slot.runner]) for slot in self._state.slots.values()]

    def runners_of(self, key: str) -> list[tuple[Slot, Life]]:
        """The runners of a model, for a look; none where it is not loaded."""
        return [(slot, self._lives[slot.runner]) for slot in self._state.slots_of(key)]

    @property
    def limits(self) -> Limits:
        """The bounds that are held now."""
        return self._state.limits

    def in_use(self, key: str) -> bool:
        """Whether requests use the model or wait for it."""
        waiting = any(asked.key == key for asked in self._state.waiting)
        return waiting or any(slot.leases for slot in self._state.slots_of(key))

    async def unload(self, key: str) -> int:
        """Stop the model's runners once their requests have ended, and wait for that.

        Returns how many there were.
        """
        slots = self._state.slots_of(key)
        if not slots:
            return 0
        self._feed(Unload(key))
        tasks = [self._tasks[slot.runner] for slot in slots if slot.runner in self._tasks]
        if tasks:
            await asyncio.wait(tasks)
        return len(slots)

    def keep_only(self, policies: Mapping[str, Policy]) -> None:
        """Serve the models of these keys by these policies from now on, and unload every other one
        once its requests have ended, without waiting for that.

        Streams of those others may still need another runner, which goes likewise.
        """
        keys = policies.keys()
        changed = [key for key in keys if policies[key] != self._policies.get(key)]
        self._policies = dict(policies)
        self._current = set(keys)
        waited_for = {asked.key for asked in self._state.waiting}
        self._timings.keep_only(keys)
        self._state = self._state.remembering({*keys, *waited_for})
        for key in self._failed.keys() - keys - waited_for:
            del self._failed[key]
        for key in changed:
            self._feed(Policed(key, policies[key]))
        for key in {slot.key for slot in self._state.slots.values()} - keys:
            self._feed(Unload(key))

    def set_limits(self, limits: Limits) -> None:
        """Hold other bounds from now on. Who waits already is refused only for a memory that his
        model does not fit into beside those that stay; never for the length of a queue."""
        self._state = replace(self._state, limits=limits)
        self._feed(Tick())

    def drain(self) -> None:
        """Take nothing new; runners stop as their requests end. A stream that loses its runner
        meanwhile still gets another."""
        self._feed(Drain())

    async def drained(self) -> None:
        """Wait until no runner is left, after `drain`."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def close(self) -> None:
        """Stop every runner now, whatever it does, and wait until all are gone."""
        self._feed(Drain(moves=False))
        for life in self._lives.values():
            life.stop.set()
        await self.drained()
        self._waking.cancel()
        if self._telling.cancel():
            self._tell()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})

    def runner_changed(self) -> None:
        """Hear that some runner's load has gone on, or its health has changed."""
        for life in tuple(self._lives.values()):
            self._look_at(life)
        self._announce(now=True)

    # For tickets.

    def enter(self, ticket: Ticket, asked: Asked) -> None:
        self._tickets[asked.request] = ticket
        ticket.running = sum(len(slot.leases) for slot in self._state.slots_of(asked.key))
        self._feed(asked)
        if ticket.waits:
            ticket.position = self._position(asked)
            for _, life in self.runners_of(asked.key):
                if life.loaded_at is None and ticket.load is None:
                    ticket.awaits(life.load)

    def leave(self, ticket: Ticket, asked: Asked) -> None:
        del self._tickets[asked.request]
        if ticket.served:
            now = self.now()
            self._timings.served(asked.key, now - ticket.granted_at, now)
        self._feed(Left(asked.request))

    def advanced(self, ticket: Ticket, asked: Asked) -> None:
        now, life = self.now(), ticket.life
        self._timings.advanced(asked.key, ticket.prompt_bytes, now - ticket.granted_at, now)
        if not life.advanced:
            life.advanced = True
            self._feed(Advanced(life.id))

    def outlook(self, asked: Asked) -> Wait:
        lives = (life for _, life in self.runners_of(asked.key) if life.loaded_at is None)
        fractions = [life.runner.fraction for life in lives if life.runner is not None]
        return Wait(self._position(asked), max(fractions, default=None))

    def _position(self, asked: Asked) -> int:
        if self._positions is None:
            self._positions = self._state.positions()
        return self._positions.get(asked.request, 0)

    # For lives.

    def serves(self, life: Life, memory: int | None) -> None:
        life.loaded_at = self.now()
        seconds = life.loaded_at - life.started_at
        extra = {"runner_id": life.id, "model": life.wanted.name, "memory_bytes": memory}
        logger.info("loaded in %.2f s", seconds, extra=extra)
        life.load.done(memory)
        self._failed.pop(life.wanted.key, None)
        measures.loaded(life.wanted.name, seconds)
        self._timings.loaded(life.wanted.key, life.wanted.needs, seconds, life.loaded_at)
        self._feed(Loaded(life.id, memory))
        if life.wanted.key not in self._current:
            self._feed(Unload(life.wanted.key))  # It was started for streams from before.
        self._look_at(life)  # Its health may have changed since it was ready.

    def holds(self, life: Life, memory: int) -> None:
        self._feed(Measured(life.id, memory))

    def is_used(self, life: Life) -> bool:
        return bool(self._state.slots[life.id].leases)

    def ended(self, life: Life, cause: str, error: HeadraceError) -> None:
        del self._tasks[life.id]
        if life.loaded_at is None and not life.stop.is_set():
            self._failed[life.wanted.key] = life.load.link()
        self._feed(Exited(life.id, cause, error))
        del self._lives[life.id]

    # Events in, actions out.

    def _feed(self, event: Event) -> None:
        now = self.now()
        self._state, actions = decide(self._state, event, now)
        self._positions = None
        for action in actions:
            self._carry_out(action)
        self._waking.set(self._state.wake_at(now))  # What has become due since is due at once.
        self._announce(now=not is_routine(event, actions))

    def _tick(self) -> None:
        self._feed(Tick())

    def _announce(self, *, now: bool) -> None:
        """Have those who wait look again, and those told who watch: now, or within a moment."""
        changed, self.changed = self.changed, self._loop.create_future()
        changed.set_result(None)
        due = self.now()
        self._telling.set(due if now else max(due, self._told_at + TELLING_INTERVAL))

    def _tell(self) -> None:
        self._told_at = self.now()
        self._on_change()

    def _look_at(self, life: Life) -> None:
        """See whether a runner has stalled, one that had has recovered, or one goes by itself.

        The requests of one that is to go are freed of it as well.
        """
        slot = self._state.slots.get(life.id)
        if slot is None or life.runner is None:
            return
        if life.runner.state is RunnerState.STALLED:
            if not life.stalled.done():
                life.stalled.set_result(None)
            if slot.phase is Phase.SERVING:
                self._feed(Stalled(life.id))
        elif life.runner.state is RunnerState.SERVING and life.stalled.done():
            life.stalled = self._loop.create_future()
            self._feed(Recovered(life.id))
        elif life.runner.state is RunnerState.DRAINING and slot.phase in _SERVES:
            self._feed(Leaving(life.id))

    def _carry_out(self, action: Action) -> None:
        match action:
            case Start(runner, key):
                waiting = self._waiting_for(key)
                # Of those who wait for a model the first is whom the core has started it for.
                life = Life(runner, waiting[0].wanted, begin_load(runner, waiting, self.now()))
                measures.starting(life.wanted.name)
                self._lives[runner] = life
                # In a context of its own: it may outlive the request that it is for.
                context = Context()
                context.run(otel_context.attach, life.load.context)
                living = live(life, self._launcher, self, self._memory_interval)
                task = self._loop.create_task(living, name=runner, context=context)
                self._tasks[runner] = task
                if self._watching is None or self._watching.done():
                    watch, context = self._watch_machine(), Context()
                    self._watching = self._loop.create_task(watch, name="memory", context=context)
            case Stop(runner, why):
                life = self._lives[runner]
                life.why = why
                life.stop.set()
            case Grant(request, runner):
                life = self._lives[runner]
                life.used.set()
                self._tickets[request].grant(life, self.now())
            case Refuse(request, error):
                ticket = self._tickets[request]
                blocked = isinstance(error, CircuitOpen)
                ticket.refuse(error, self._failed.get(ticket.key) if blocked else None)

    def _waiting_for(self, key: str) -> list[Ticket]:
        return [self._tickets[asked.request] for asked in self._state.waiting if asked.key == key]

    async def _watch_machine(self) -> None:
        """Tell the core when the machine gets short of memory, and when it is no more."""
        while self._lives:
            await asyncio.sleep(self._memory_interval)
            try:
                short = self._shortage()
                if short or self._state.short:
                    if short and not self._state.short:
                        extra = {"short_bytes": short}
                        logger.warning("the machine is short of memory", extra=extra)
                    self._feed(Pressure(short))
            except Exception:  # a bug, or /proc; the next look may go well
                logger.exception("the machine's memory was not looked at")
