"""The shell around the scheduling core: it feeds the core events and carries its orders out.

It decides nothing. It owns one task per runner, from its start until it is reaped, and answers
those who wait. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection
from contextvars import Context
from typing import Any, Protocol

from headrace.errors import HeadraceError, LoadFailed, ModelCorrupt, UnsupportedModel
from headrace_server.runners.diagnosis import Death
from headrace_server.scheduling.core import decide
from headrace_server.scheduling.state import (
    Action,
    Asked,
    Drain,
    Event,
    Exited,
    Grant,
    Left,
    Limits,
    Loaded,
    Refuse,
    Slot,
    Start,
    State,
    Stop,
    Tick,
    Unload,
)
from headrace_server.scheduling.ticket import Life, Runner, Ticket, Wait, Wanted

logger = logging.getLogger(__name__)

STOP_GRACE = 2.0
"""Seconds for a runner without requests to exit before it is killed."""


class Launcher(Protocol):
    """Turns an order into a process."""

    async def launch(self, runner_id: str, wanted: Wanted) -> Runner:
        """Start a runner. Raises HeadraceError where that cannot even be tried."""

    async def measure(self, runner: Runner, wanted: Wanted) -> int | None:
        """Bytes that a loaded runner holds, by its own report; None: it does not say."""


class Scheduler:
    """Gives requests their runners. See `core` for the rules."""

    def __init__(
        self, limits: Limits, launcher: Launcher, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """`on_change` is called after every change of who is loaded."""
        self._loop = asyncio.get_running_loop()
        self._launcher = launcher
        self._on_change = on_change
        self._state = State(limits)
        self._requests = 0
        self._tickets: dict[int, Ticket] = {}
        self._wanted: dict[str, Wanted] = {}
        self._lives: dict[str, Life] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
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
    ) -> Ticket:
        """A claim to a runner of `wanted`. It counts once it is entered."""
        self._requests += 1
        self._wanted[wanted.key] = wanted
        asked = Asked(self._requests, wanted.key, wanted.needs, keep_alive, priority, deadline)
        return Ticket(self, asked)

    def slot_of(self, key: str) -> tuple[Slot, Life] | None:
        """The runner of a model, for a look; None where it is not loaded."""
        slot = self._state.slot_of(key)
        return None if slot is None else (slot, self._lives[slot.runner])

    def loaded(self) -> dict[str, tuple[Slot, Life]]:
        """Every runner, by key."""
        return {s.key: (s, self._lives[s.runner]) for s in self._state.slots.values()}

    def in_use(self, key: str) -> bool:
        """Whether requests use the model or wait for it."""
        slot = self._state.slot_of(key)
        waiting = any(asked.key == key for asked in self._state.waiting)
        return waiting or (slot is not None and bool(slot.leases))

    async def unload(self, key: str) -> bool:
        """Stop the model's runner once its requests have ended, and wait for that.

        Returns whether there was one.
        """
        slot = self._state.slot_of(key)
        if slot is None:
            return False
        self._feed(Unload(key))
        task = self._tasks.get(slot.runner)
        if task is not None:
            await asyncio.wait({task})
        return True

    def keep_only(self, keys: Collection[str]) -> None:
        """Unload every other model once its requests have ended, without waiting for that."""
        for key in self.loaded().keys() - keys:
            self._feed(Unload(key))

    def drain(self) -> None:
        """Take nothing more; runners stop as their requests end."""
        self._feed(Drain())

    async def drained(self) -> None:
        """Wait until no runner is left, after `drain`."""
        while self._tasks:
            await asyncio.wait(self._tasks.values())

    async def close(self) -> None:
        """Stop every runner now, whatever it does, and wait until all are gone."""
        if self._timer is not None:
            self._timer.cancel()
        self.drain()
        for life in self._lives.values():
            life.stop.set()
        await self.drained()

    def runner_changed(self) -> None:
        """Tell those who wait that some runner's load has gone on."""
        changed, self.changed = self.changed, self._loop.create_future()
        changed.set_result(None)
        self._on_change()

    # For tickets.

    def enter(self, ticket: Ticket, asked: Asked) -> None:
        self._tickets[asked.request] = ticket
        self._feed(asked)

    def leave(self, request: int) -> None:
        self._tickets.pop(request, None)
        self._feed(Left(request))

    def outlook(self, asked: Asked) -> Wait:
        slot = self._state.slot_of(asked.key)
        life = self._lives.get(slot.runner) if slot is not None else None
        loading = life is not None and life.loaded_at is None
        fraction = life.runner.fraction if loading and life and life.runner else None
        return Wait(self._state.position(asked.request), fraction)

    # Events in, actions out.

    def _feed(self, event: Event) -> None:
        self._state, actions = decide(self._state, event, self.now())
        for action in actions:
            self._carry_out(action)
        if self._timer is not None:
            self._timer.cancel()
        wake = self._state.wake_at(self.now())
        self._timer = None
        if wake != math.inf:
            # In a context of its own: what time brings is not part of anybody's trace.
            self._timer = self._loop.call_at(wake, self._feed, Tick(), context=Context())
        self.runner_changed()

    def _carry_out(self, action: Action) -> None:
        match action:
            case Start(runner, key):
                life = Life(runner, self._wanted[key], self.now())
                self._lives[runner] = life
                self._tasks[runner] = self._loop.create_task(self._live(life), name=runner)
            case Stop(runner, why):
                life = self._lives[runner]
                extra = {"runner_id": runner, "model": life.wanted.name, "why": why}
                logger.info("unloading", extra=extra)
                life.stop.set()
            case Grant(request, runner):
                self._tickets[request].grant(self._lives[runner], self.now())
            case Refuse(request, error):
                self._tickets[request].refuse(error)

    async def _live(self, life: Life) -> None:
        cause = "EXITED"
        error: HeadraceError = LoadFailed("the model could not be loaded", cause=cause)
        try:
            death = await self._run(life)
            cause, error = death.cause, load_error(death, life.wanted.name)
        except HeadraceError as failure:
            logger.warning("not started: %s", failure, extra={"model": life.wanted.name})
            cause, error = "LOAD_FAILED", failure
        except Exception:  # a bug, which those who wait must not pay for by waiting on
            logger.exception("runner %s", life.id, extra={"model": life.wanted.name})
        finally:
            del self._tasks[life.id]
            self._feed(Exited(life.id, cause, error))
            del self._lives[life.id]
            life.gone.set()

    async def _run(self, life: Life) -> Death:
        runner = life.runner = await self._launcher.launch(life.id, life.wanted)
        serving = asyncio.create_task(self._serve(life, runner))
        stop = asyncio.create_task(life.stop.wait())
        ends: set[asyncio.Task[Any]] = {runner.dead, stop}
        try:
            await asyncio.wait({serving, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done() and not runner.dead.done():
                serving.result()
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            serving.cancel()
            stop.cancel()
            await asyncio.gather(serving, stop, return_exceptions=True)
            death = await runner.stop(STOP_GRACE)
        return death

    async def _serve(self, life: Life, runner: Runner) -> None:
        await runner.ready()
        memory = await self._launcher.measure(runner, life.wanted)
        life.loaded_at = self.now()
        extra = {"runner_id": life.id, "model": life.wanted.name, "memory_bytes": memory}
        seconds = life.loaded_at - life.started_at
        logger.info("loaded in %.2f s", seconds, extra=extra)
        self._feed(Loaded(life.id, memory))


def load_error(death: Death, model: str) -> HeadraceError:
    """What one who waits for a model is told when its runner died instead of serving."""
    match death.cause:
        case "MODEL_CORRUPT":
            return ModelCorrupt(death.message, file=death.file or "")
        case "UNSUPPORTED_MODEL":
            return UnsupportedModel(death.message)
        case cause:
            return LoadFailed(f"{model} could not be loaded: {death.message}", cause=cause)
