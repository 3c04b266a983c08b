"""Watches over runners: one process, one channel and one health stream each, until death.

Tells the scheduler what changes and kills what is stuck. Never decides which model runs, and never
restarts anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import Context
from typing import Any

import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from opentelemetry import trace

from headrace.host.handover import Ended, Listening, Report
from headrace.host.orders import SPARE
from headrace.telemetry import names
from headrace.telemetry.records import SpanRecord
from headrace_server.runners.diagnosis import Death, Verdict, not_started
from headrace_server.runners.lifecycle import (
    Died,
    Event,
    Health,
    Limits,
    Silent,
    State,
    Stopping,
    advance,
    begin,
    overslept,
)
from headrace_server.runners.oom import OomKills
from headrace_server.runners.output import Lines
from headrace_server.runners.process import RUNNER_COMMAND, OnReport, RunnerProcess
from headrace_server.runners.spares import Activity, Spares
from headrace_server.runners.spawn import Spawned, spawn
from headrace_server.runners.spec import RunnerSpec

logger = logging.getLogger(__name__)

_WATCH = "/grpc.health.v1.Health/Watch"
_CHECK = "/grpc.health.v1.Health/Check"
_RETRY_WATCH = 0.5  # seconds between two tries of a health stream that broke
_CLOSE_GRACE = 1.0  # seconds for calls in flight to see the broken connection by themselves

Connect = Callable[[str], grpc.aio.Channel]
OnSpan = Callable[[SpanRecord], None]
"""Takes the spans that runners report."""


class RunnerDied(Exception):
    """The runner that was waited for is dead."""

    def __init__(self, death: Death) -> None:
        super().__init__(death.message)
        self.death = death


class RunningRunner:
    """One runner, from before its process starts until after it is reaped."""

    def __init__(
        self,
        spec: RunnerSpec,
        start: Callable[[RunnerSpec, OnReport], Awaitable[RunnerProcess]],
        *,
        connect: Connect,
        limits: Limits,
        oom_kills: OomKills,
        on_change: Callable[[RunningRunner], None],
        on_span: OnSpan | None,
        lines: Lines = nullcontext,
    ) -> None:
        self.spec = spec
        self._lines = lines
        self._start = start
        self._oom_kills = oom_kills
        self._connect = connect
        self._limits = limits
        self._on_change = on_change
        self._on_span = on_span
        loop = asyncio.get_running_loop()
        self._clock = loop.time
        self._life = begin(loop.time(), limits)
        self._timer: asyncio.TimerHandle | None = None
        self._stop_grace: float | None = None
        self._verdict: Verdict | None = None
        """On a process that has not started yet."""
        self._process: RunnerProcess | None = None
        self._channel: grpc.aio.Channel | None = None
        self._listening: asyncio.Future[Listening] = loop.create_future()
        self._ready: asyncio.Future[None] = loop.create_future()
        self.dead: asyncio.Task[Death] = asyncio.create_task(
            self._live(),
            name=f"supervise {spec.id}",
            # Its lines are part of what `lines` says, which is not the same for ever.
            context=Context(),
        )
        """Ends when all is cleaned up. Wait for it with `asyncio.wait` or `shield`."""
        self.dead.add_done_callback(lambda _: self._apply(Died()))

    @property
    def state(self) -> State:
        return self._life.state

    @property
    def fraction(self) -> float:
        """How much of the model is loaded, 0 to 1."""
        return self._life.fraction

    @property
    def pid(self) -> int | None:
        """None before the process has started."""
        return self._process.pid if self._process else None

    @property
    def channel(self) -> grpc.aio.Channel:
        """The one channel to this runner. Raises RuntimeError before it listens."""
        if self._channel is None:
            raise RuntimeError(f"runner {self.spec.id} is not listening yet")
        return self._channel

    async def ready(self) -> None:
        """Return when it serves; any number may wait, and any of them may be cancelled.

        Raises RunnerDied if it dies first.
        """
        either: set[asyncio.Future[Any]] = {self._ready, self.dead}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self.dead.done():
            raise RunnerDied(self.dead.result())

    async def stop(self, grace: float) -> Death:
        """Drain for at most `grace` seconds, then kill; returns when it is gone.

        Cancelling this does not call the stop off.
        """
        self._stop_grace = grace
        self._apply(Stopping())
        if self._process is not None:
            await self._process.stop(grace)
        return await asyncio.shield(self.dead)

    async def _live(self) -> Death:
        self._set_timer()
        try:
            death = await self._run()
        except OSError as error:
            with self._lines():
                logger.exception("runner %s could not be started", self.spec.id)
            death = not_started(error)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._channel is not None:
                await self._channel.close(_CLOSE_GRACE)
        level = logging.INFO if death.expected else logging.ERROR
        extra = {"runner_id": self.spec.id, "model": self.spec.model, "cause": death.cause}
        with self._lines():
            logger.log(level, "runner ended: %s", death.message, extra=extra)
        return death

    async def _run(self) -> Death:
        process = self._process = await self._start(self.spec, self._on_report)
        if self._verdict is not None:
            process.kill(self._verdict)
        if self._stop_grace is not None:
            return await process.stop(self._stop_grace)
        watcher = asyncio.create_task(self._watch_health(), name=f"health {self.spec.id}")
        try:
            return await process.dead
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    def _on_report(self, report: Report | None) -> None:
        if report is None:
            self._apply(Silent())
            return
        if isinstance(report, Ended):
            if self._on_span is not None:
                self._on_span(report.span)
            return
        if isinstance(report, Listening) and not self._listening.done():
            if report.digest != self.spec.digest:
                reason = f"it holds {report.digest} instead of {self.spec.digest}"
                self._kill(Verdict("LOAD_FAILED", reason))
                return
            self._channel = self._connect(report.address)
            self._listening.set_result(report)
        self._apply(report)

    async def _watch_health(self) -> None:
        await asyncio.shield(self._listening)
        watch = self.channel.unary_stream(
            _WATCH,
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        probe = asyncio.create_task(self._probe(), name=f"probe {self.spec.id}")
        try:
            while True:
                try:
                    call = watch(HealthCheckRequest(), wait_for_ready=True)
                    while (response := await call.read()) is not grpc.aio.EOF:
                        self._apply(_health(response))
                except grpc.aio.AioRpcError as error:
                    logger.info("health stream of %s broke: %s", self.spec.id, error.code())
                await asyncio.sleep(_RETRY_WATCH)
        finally:
            probe.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probe

    async def _probe(self) -> None:
        """Ask a serving runner for a sign of life: a stopped process breaks no stream."""
        check = self.channel.unary_unary(
            _CHECK,
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        await asyncio.shield(self._ready)
        half = self.spec.stall_timeout / 2
        while True:
            await asyncio.sleep(half)
            self._oom_kills.look()
            try:
                self._apply(_health(await check(HealthCheckRequest(), timeout=half)))
            except grpc.aio.AioRpcError:
                self._apply(Health(serving=False))

    def _apply(self, event: Event) -> None:
        before = self._life
        self._life = advance(before, event, self._clock(), self._limits)
        if self._life is before:
            return
        self._set_timer()
        if self._life.state is State.SERVING and not self._ready.done():
            self._ready.set_result(None)
        try:
            self._on_change(self)
        except Exception:  # a bug of who is told, which is not to end the watch over the runner
            logger.exception("a change of runner %s was not taken", self.spec.id)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._life.deadline is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._life.deadline, self._overdue)

    def _overdue(self) -> None:
        more = overslept(self._life, self._clock())
        if more is None:
            self._kill(Verdict("STALLED", self._life.owes))
            return
        logger.warning("this process was suspended; runner %s gets more time", self.spec.id)
        self._life = more
        self._set_timer()

    def _kill(self, verdict: Verdict) -> None:
        extra = {"runner_id": self.spec.id, "model": self.spec.model}
        with self._lines():
            logger.error("killing runner %s: %s", self.spec.id, verdict.reason, extra=extra)
        if self._process is None:
            self._verdict = verdict
        else:
            self._process.kill(verdict)


def _health(response: HealthCheckResponse | None) -> Health:
    """What an answer means; None: it could not be decoded."""
    return Health(serving=response is not None and response.status == HealthCheckResponse.SERVING)


class Supervisor:
    """Starts the runners of one controller, all in the same way."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        on_change: Callable[[RunningRunner], None],
        connect: Connect = grpc.aio.insecure_channel,
        command: Sequence[str] = RUNNER_COMMAND,
        limits: Limits | None = None,
        activity: Callable[[], Activity] | None = None,
        on_span: OnSpan | None = None,
    ) -> None:
        """`environment`: of every runner. `on_change`: called on the event loop after each change
        of a runner's state or load fraction; the last one is DEAD. `connect`: makes the channel to
        an address. `limits`: how long a runner may take; defaults otherwise. `activity`: what goes
        on, for a spare to be made by; none is without it. `on_span`: takes the spans of those that
        are told to report them."""
        self._environment = dict(environment)
        self._on_change = on_change
        self._connect = connect
        self._command = command
        self._limits = limits or Limits()
        self._oom_kills = OomKills()
        self._on_span = on_span
        self.spares = None if activity is None else Spares(self._start_spare, activity)
        """Call its `look`, and its `close` before the last runner is stopped."""

    def start(
        self,
        spec: RunnerSpec,
        extra_environment: Mapping[str, str] | None = None,
        lines: Lines = nullcontext,
    ) -> RunningRunner:
        """Start a runner, of the spare if there is one, and return at once.

        Wait with its `ready()`. `extra_environment` is this runner's alone, such as TRACEPARENT.
        `lines` gives the context for what is logged of it.
        """
        extra = extra_environment or {}
        self._oom_kills.look()

        async def begin(spec: RunnerSpec, on_report: OnReport) -> RunnerProcess:
            spare = self.spares.take() if self.spares else None
            if spare is not None:
                with lines():
                    trace.get_current_span().set_attribute(names.HEADRACE_RUNNER_SPARE, True)
                return RunnerProcess.adopt(spec, spare, extra, on_report, self._oom_kills, lines)
            environment = {**self._environment, **extra}
            return await RunnerProcess.start(
                spec, environment, on_report, self._command, self._oom_kills, lines
            )

        return RunningRunner(
            spec,
            begin,
            connect=self._connect,
            limits=self._limits,
            oom_kills=self._oom_kills,
            on_change=self._on_change,
            lines=lines,
            on_span=self._on_span,
        )

    async def _start_spare(self) -> Spawned:
        return await spawn(self._command, lambda *_: [SPARE], self._environment)
