"""One request's claim to a runner, from asking to giving the place back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import grpc.aio
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span

from headrace.errors import HeadraceError
from headrace.telemetry import names, outcome
from headrace_server import measures
from headrace_server.runners.diagnosis import Death
from headrace_server.runners.lifecycle import State as RunnerState
from headrace_server.scheduling.loading import Load
from headrace_server.scheduling.state import Asked, Policy

_tracer = trace.get_tracer("headrace.controller")


class Wanted(Protocol):
    """A model as the scheduler sees it. What else there is to know is the launcher's."""

    @property
    def key(self) -> str:
        """Those with the same key share a runner."""

    @property
    def digest(self) -> str:
        """Of the model's files. Several keys may have it, where options differ."""

    @property
    def needs(self) -> int:
        """Bytes of memory, as estimated."""

    @property
    def policy(self) -> Policy:
        """How it is served."""

    @property
    def name(self) -> str:
        """For people."""


class Runner(Protocol):
    """What the scheduler needs of a runner. `RunningRunner` is one."""

    dead: asyncio.Task[Death]

    @property
    def state(self) -> RunnerState: ...
    @property
    def fraction(self) -> float: ...
    @property
    def pid(self) -> int | None: ...
    @property
    def channel(self) -> grpc.aio.Channel: ...
    async def ready(self) -> None: ...
    async def stop(self, grace: float) -> Death: ...


@dataclass
class Life:
    """One runner from the order to start it until it is gone."""

    id: str
    wanted: Wanted
    load: Load
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is to be stopped."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the scheduler knows of its end, so that who asks then gets another."""
    used: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when requests use it, until its memory has been looked at."""
    advanced: bool = False
    """Whether a stream on it has had its first token."""
    loaded_at: float | None = None
    """None until it serves."""
    runner: Runner | None = None
    """None until there is a process."""
    stalled: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Done while it makes no progress: its requests are better served by another."""
    why: str = ""
    """Of its end: that of the order to stop, else the cause of death. Empty before."""

    @property
    def started_at(self) -> float:
        """When it was ordered."""
        return self.load.began


@dataclass(frozen=True, slots=True)
class Wait:
    """How it looks for one who waits."""

    queue_position: int
    """Requests for the same model that are ahead."""
    load_fraction: float | None
    """How much of the model is loaded, 0 to 1; None while its load has not begun."""


class Desk(Protocol):
    """Where tickets are handed in: the scheduler."""

    @property
    def changed(self) -> asyncio.Future[None]:
        """Done at the next change of anything that `outlook` tells."""

    def now(self) -> float: ...
    def enter(self, ticket: Ticket, asked: Asked) -> None: ...
    def leave(self, ticket: Ticket, asked: Asked) -> None: ...
    def advanced(self, ticket: Ticket, asked: Asked) -> None: ...
    def outlook(self, asked: Asked) -> Wait: ...


class Ticket:
    """One request's claim to a runner: enter, wait, use `life`, leave.

    Leaving the context gives the place back, whatever happened.
    """

    def __init__(self, desk: Desk, asked: Asked, wanted: Wanted, prompt_bytes: int = 0) -> None:
        self._desk = desk
        self._asked = asked
        self.wanted = wanted
        self._advanced = False
        self.prompt_bytes = prompt_bytes
        self._granted: asyncio.Future[Life] = asyncio.get_running_loop().create_future()
        self.asked_at = desk.now()
        self.granted_at = self.asked_at
        self.origin = trace.set_span_in_context(trace.get_current_span(), Context())
        """The trace that it is part of."""
        self.position: int | None = None
        """How many requests for the same model were ahead; None if it did not have to wait."""
        self.running = 0
        """How many of them had a runner then."""
        self.load: Load | None = None
        """The last load that it waited for."""
        self._own_load = False

    def __enter__(self) -> Self:
        self._desk.enter(self, self._asked)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._granted.cancel():
            self._note_wait(outcome.CANCELLED, "")
        self._desk.leave(self, self._asked)

    @property
    def key(self) -> str:
        """Of the model that is wanted."""
        return self._asked.key

    @property
    def served(self) -> bool:
        """Whether there was a runner for it."""
        return self._granted.done() and not (self._granted.cancelled() or self._granted.exception())

    @property
    def life(self) -> Life:
        """The runner. Only after `waiting` has ended."""
        return self._granted.result()

    @property
    def runner(self) -> Runner:
        """The running process. Only after `waiting` has ended."""
        runner = self.life.runner
        assert runner is not None
        return runner

    @property
    def waits(self) -> bool:
        """Whether it has no answer yet."""
        return not self._granted.done()

    @property
    def load_span(self) -> tuple[float, float]:
        """When the load that was waited for began and ended; equal if there was none."""
        loaded_at = self.life.loaded_at or self.asked_at
        began = min(max(self.asked_at, self.life.started_at), self.granted_at)
        return began, max(began, min(loaded_at, self.granted_at))

    async def waiting(self, heartbeat: float) -> AsyncGenerator[Wait, None]:
        """How the wait goes: at every change, and every `heartbeat` seconds without one.

        Ends when there is a runner; yields nothing if there is one already. Raises the typed error
        of a refusal.
        """
        last: Wait | None = None
        while not self._granted.done():
            wait = self._desk.outlook(self._asked)
            if wait != last:
                yield wait
                last = wait
                continue  # Time has passed; look again before waiting.
            changed = self._desk.changed
            events: set[asyncio.Future[Any]] = {self._granted, changed}
            done, _ = await asyncio.wait(
                events, timeout=heartbeat, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                last = None
        self._granted.result()

    async def granted(self) -> None:
        """Wait without looking. Raises the typed error of a refusal."""
        await asyncio.wait({self._granted})
        self._granted.result()

    def advanced(self) -> None:
        """Say that the stream has its first token. Once is enough; more often does no harm."""
        if not self._advanced:
            self._advanced = True
            self._desk.advanced(self, self._asked)

    def awaits(self, load: Load, *, own: bool = False) -> None:
        """It waits for a load, which it may have caused. The scheduler's alone, as are the next."""
        self.load, self._own_load = load, own

    def grant(self, life: Life, now: float) -> None:
        """Hand over the runner."""
        self.granted_at = now
        if not self._granted.done():
            self._granted.set_result(life)
            self._note_wait("", "")

    def refuse(self, error: HeadraceError, because: Link | None = None) -> None:
        """End the wait with an error. `because`: what led to it, perhaps in another trace."""
        if not self._granted.done():
            self._granted.set_exception(error)
            self._granted.exception()  # Seen, even if the one who asked is gone.
            self._note_wait(outcome.kind_of(error), error.message, because)

    def _note_wait(self, kind: str, message: str, because: Link | None = None) -> None:
        """The wait is over: its measure, and its spans if there was one. `kind`: of the error that
        it ended in, if it did."""
        now = self._desk.now()
        self._measure_wait(kind, now - self.asked_at)
        waited = self.position is not None or self.load is not None or kind
        if not waited or not trace.get_current_span(self.origin).is_recording():
            return
        load = self.load
        if load is not None and self.served and self.life.load is not load:
            load = None  # Another runner was free before.
        loading_at = now if load is None else min(max(load.began, self.asked_at), now)
        epoch = time.time_ns() - int(now * 1e9)
        queue = self._span(names.SPAN_QUEUE, epoch, self.asked_at)
        if self.position is not None:
            queue.set_attribute(names.HEADRACE_QUEUE_POSITION, self.position)
        if self.position is not None or kind:
            queue.set_attribute(names.HEADRACE_QUEUE_RUNNING, self.running)
        last, since = queue, loading_at
        if load is not None and not self._own_load:
            queue.end(epoch + int(loading_at * 1e9))
            last = self._span(names.SPAN_LOAD_WAIT, epoch, loading_at, load.link())
            since = now
        if kind:
            outcome.mark(last, kind, message)
        if because is not None:
            last.add_link(because.context)
        last.end(epoch + int(since * 1e9))

    def _measure_wait(self, kind: str, seconds: float) -> None:
        match kind:
            case "":
                measures.granted(self._asked.name, seconds, self.origin)
            case outcome.CANCELLED:
                measures.gave_up(self._asked.name, seconds, self.origin)
            case _:
                measures.refused(self._asked.name, kind, self.origin)

    def _span(self, name: str, epoch: int, since: float, *links: Link) -> Span:
        began = epoch + int(since * 1e9)
        return _tracer.start_span(name, self.origin, links=links, start_time=began)


def begin_load(runner: str, waiting: Sequence[Ticket], now: float) -> Load:
    """The record of a load for those who wait for it, of whom there is one at least.

    It is part of the trace of the first of them that has none yet.
    """
    first = next((ticket for ticket in waiting if ticket.load is None), waiting[0])
    wanted = waiting[0].wanted
    load = Load(runner, wanted.name, wanted.digest, now, first.origin)
    for ticket in waiting:
        ticket.awaits(load, own=ticket is first)
    return load
