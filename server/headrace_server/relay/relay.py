"""The relay: the asyncio shell that carries calls to runners and their answers back.

The request's own bytes go to the runner and the runner's own bytes to the client. Every stream ends
with `completed` or with an error that says why; the runner's place is given back in any case.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import grpc
from opentelemetry.trace import INVALID_SPAN_CONTEXT, SpanContext

from headrace.errors import DeadlineExceeded, Draining, HeadraceError
from headrace.rpc.access import charge
from headrace.telemetry.logs import bind
from headrace.telemetry.outcome import kind_of
from headrace_server import measures
from headrace_server.measures import Output
from headrace_server.relay.calls import Lost, answers, ask_once, note_wait
from headrace_server.relay.probation import Late, Probation, Turn
from headrace_server.relay.record import MAX_KILLS, DivergedError, End, Record, StreamRecord
from headrace_server.relay.spans import Attempt, note_end
from headrace_server.scheduling.shell import Scheduler
from headrace_server.scheduling.state import Prefixes
from headrace_server.scheduling.ticket import Life, Ticket, Wait, Wanted

logger = logging.getLogger(__name__)

_PAUSE = 1.0
"""Seconds for a runner that takes nothing more to be gone, before another is asked for."""

_BEFORE = {
    End.DIED: "as did the one before: the request may be the cause",
    End.KILLED: f"as were {MAX_KILLS - 1} before it with no progress between them",
}
"""Why a call gets no other runner, after how it lost the last one."""

_STALLS = 1.5
"""Times that a runner may stall for, and be found out, within the turn of one suspect: so who hangs
is still alone when that is seen."""

Write = Callable[[bytes], Awaitable[None]]
Kind = Callable[[bytes, float], StreamRecord]
"""Makes the record of a stream, of its request and when that arrived."""
ReadOutput = Callable[[bytes], Output]
"""Reads off a response what is measured of it."""
Close = Callable[[bytes, Record, float], bytes]
"""Makes the response of what the runner gave and of the call's record, now."""
Use = Callable[[Ticket, dict[str, Any], Turn | None], Awaitable[None]]
Tell = Callable[[Wait], Awaitable[None]]


@dataclass(frozen=True)
class Terms:
    """On what terms a call takes part."""

    wanted: Wanted
    keep_alive: float | None = None
    """Seconds; None: the default."""
    priority: int = 0
    time_remaining: float | None = None
    """Seconds to the client's deadline; None if it set none."""
    prefixes: Prefixes = ()
    """Of the prompt, where the model may have several runners to choose from."""
    prompt_bytes: int = 0
    """About how long the prompt is; 0 for a call that computes none."""
    adapter: str | None = None
    """Digest of the adapter that the model is to be used with; None: without one."""
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """What is told of the request in its metrics."""


@dataclass(frozen=True)
class _Call:
    """What is the same in all attempts at a call."""

    method: str
    terms: Terms
    record: Record
    tell: Tell
    """Told how the wait for a runner goes."""
    use: Use
    """Makes the call to the ticket's runner; ends its turn once it has advanced. Raises Lost."""


@dataclass(frozen=True)
class _Loss:
    """How a call lost its runner."""

    life: Life
    cause: str
    """A cause of `ERROR_REASON_RUNNER_CRASHED`."""
    message: str
    end: End
    last_words: str = ""
    """What the runner printed, for the operator."""
    attempt: SpanContext = INVALID_SPAN_CONTEXT
    """The span of the attempt that ended so."""


class Relay:
    """Relays calls to the runners that a scheduler gives out."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        max_time: float,
        heartbeat: float = 2.0,
        diagnosis: float = 5.0,
        stall_timeout: float = 60.0,
    ) -> None:
        """All in seconds. `max_time`: for calls without a deadline. `heartbeat`: between two
        messages to one who waits. `diagnosis`: how long a lost runner's death is waited for, so
        that the cause that is told is the true one. `stall_timeout`: after how long without
        progress a runner counts as stalled; a call under which one died is watched alone for
        longer, if it does not advance before."""
        self._scheduler = scheduler
        self._max_time = max_time
        self._heartbeat = heartbeat
        self._diagnosis = diagnosis
        self._probation = Probation(_STALLS * stall_timeout)
        self._limits: set[asyncio.Timeout] = set()
        self._running: set[asyncio.Task[Any]] = set()
        self._ended = False

    def end(self) -> None:
        """End every call under way, with Draining. New ones are the scheduler's to refuse."""
        self._ended = True
        for limit in self._limits:
            with suppress(RuntimeError):  # It is expiring by itself in this moment.
                limit.reschedule(self._scheduler.now())

    async def ended(self) -> None:
        """Wait until the calls that run now have ended, on whatever runners they still need."""
        if running := tuple(self._running):
            await asyncio.wait(running)

    async def stream(self, kind: Kind, request: bytes, terms: Terms, write: Write) -> None:
        """Relay a stream of a kind; `write` takes the messages, and nothing more is read from the
        runner while it does.

        Raises the typed error that the stream is to end with.
        """
        now = self._scheduler.now
        record = kind(request, now())

        async def tell(wait: Wait) -> None:
            await write(record.waiting(wait))

        async def pass_on(ticket: Ticket, options: dict[str, Any], turn: Turn | None) -> None:
            advanced = False
            attempt = answers(record.method, ticket, record.ask(now()), options)
            async with aclosing(attempt) as messages:
                async for data in messages:
                    passed = record.take(data, now())
                    if not advanced and record.advanced:
                        advanced = True
                        if turn is not None:
                            turn.end()
                        # Once the message is on its way: there is a client who waits for it. But
                        # not behind the write, which lasts for as long as that one does not read.
                        asyncio.get_running_loop().call_soon(ticket.advanced)
                    if passed is not None:
                        await write(passed)
            if not record.completed:
                raise RuntimeError(f"runner {ticket.life.id} ended a stream without `completed`")

        async def use(ticket: Ticket, options: dict[str, Any], turn: Turn | None) -> None:
            # In a task of its own, which is cancelled with this one: it is woken up twice for each
            # message, and every coroutine that waits above it would be gone through each time.
            await asyncio.create_task(pass_on(ticket, options, turn), name="passing on")

        outcome = "completed"
        try:
            await self._within_time(_Call(record.method, terms, record, tell, use))
        except BaseException as error:
            outcome = kind_of(error)
            raise
        finally:
            note_end(terms.wanted, record)
            self._note_outcome("stream ended", terms, record, outcome, record.output())

    async def unary(
        self,
        method: str,
        request: bytes,
        terms: Terms,
        output: ReadOutput | None = None,
        close: Close | None = None,
    ) -> bytes:
        """Relay a unary call, `method` as in "/package.Service/Method"; gives the response.

        `output`, for a call that the model computes, reads off a response what is measured of it.
        None: the call is answered without the model, and not measured. `close`, for such a call,
        has the response take what is known here; None: it passes as it is.
        Raises the typed error that the call is to end with.
        """
        response = b""

        async def tell(_: Wait) -> None:
            pass

        async def use(ticket: Ticket, options: dict[str, Any], turn: Turn | None) -> None:
            nonlocal response
            response = await ask_once(method, ticket, request, options)
            if output is not None:  # The model itself was asked, and has got something done.
                ticket.advanced()

        record = Record(self._scheduler.now())
        call = _Call(method, terms, record, tell, use)
        if output is None:
            await self._within_time(call)
            return response
        outcome, given = "completed", Output()
        try:
            await self._within_time(call)
            given = output(response)
            if close is not None:
                response = close(response, record, self._scheduler.now())
        except BaseException as error:
            outcome = kind_of(error)
            raise
        finally:
            note_end(terms.wanted, record)
            self._note_outcome("call ended", terms, record, outcome, given)
        return response

    def _note_outcome(
        self, line: str, terms: Terms, record: Record, outcome: str, output: Output
    ) -> None:
        """Log and measure how a call has ended, as its client saw it."""
        seconds = self._scheduler.now() - record.arrived
        ended = {
            "outcome": outcome,
            **record.counts,
            "resumed": record.moves,
            "seconds": round(seconds, 3),
        }
        logger.info(line, extra=ended)
        charge(output.charge)
        measures.ended(
            terms.wanted.name,
            terms.attributes,
            error="" if outcome == "completed" else outcome,
            seconds=seconds,
            output=output,
        )

    async def _within_time(self, call: _Call) -> None:
        bind(model=call.terms.wanted.name)
        remaining = call.terms.time_remaining
        limit = self._max_time if remaining is None else remaining
        deadline = self._scheduler.now() + limit
        timeout = asyncio.timeout_at(deadline)
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            async with timeout:
                self._limits.add(timeout)
                await self._carry_through(call, deadline)
        except TimeoutError:
            if self._ended:
                what = "the server shut down before the call was done; make it again"
                raise Draining(1.0, what) from None
            raise DeadlineExceeded(f"the call was not done within {limit:g} s") from None
        finally:
            self._limits.discard(timeout)
            self._running.discard(task)

    async def _carry_through(self, call: _Call, deadline: float) -> None:
        """Try, and move to another runner as often as may be."""
        record = call.record
        loss = await self._attempt(call, deadline, before=None)
        while loss is not None:
            if not record.lost(self._scheduler.now(), loss.end):
                message = f"{loss.message}, {_BEFORE[loss.end]}"
                raise record.crashed(message, loss.cause)
            extra = {"cause": loss.cause, **record.counts}
            logger.warning("moving to another runner: %s", loss.message, extra=extra)
            measures.moved(call.terms.wanted.name, loss.cause)
            if loss.end is End.WENT:
                with suppress(TimeoutError):
                    await asyncio.wait_for(loss.life.gone.wait(), _PAUSE)
            loss = await self._attempt(call, deadline, before=loss)

    async def _attempt(self, call: _Call, deadline: float, before: _Loss | None) -> _Loss | None:
        """Try once, in turn if it may be the cause of a death. Gives how the runner was lost, if
        it was; `before` is how the one before was.

        Raises the typed error that the call is to end with.
        """
        record = call.record
        if not record.suspect:
            return await self._try(call, deadline, before, turn=None)

        async def tell() -> None:
            await call.tell(Wait(queue_position=0, load_fraction=None))

        now = self._scheduler.now
        since = now()
        while True:
            async with self._probation.turn(call.terms.wanted.key, self._heartbeat, tell) as turn:
                record.waited(queue=now() - since, load=0.0)
                since = now()
                with suppress(Late):
                    return await self._try(call, deadline, before, turn)

    async def _try(
        self, call: _Call, deadline: float, before: _Loss | None, turn: Turn | None
    ) -> _Loss | None:
        terms, record = call.terms, call.record
        ticket = self._scheduler.ask(
            terms.wanted,
            keep_alive=terms.keep_alive,
            priority=terms.priority,
            deadline=deadline,
            prefixes=terms.prefixes,
            prompt_bytes=terms.prompt_bytes,
            moved=before is not None,
        )
        with ticket:
            try:
                async with aclosing(ticket.waiting(self._heartbeat)) as waits:
                    async for wait in waits:
                        with nullcontext() if turn is None else turn.bounded():
                            await call.tell(wait)
            except HeadraceError as refusal:
                if before is None or before.end is End.WENT or not record.begun:
                    raise
                message = f"{before.message}, and no other could go on: {refusal.message}"
                raise record.crashed(message, before.cause) from None
            if turn is not None:
                turn.begin()
            note_wait(ticket, record)
            bind(runner_id=ticket.life.id)
            previous = INVALID_SPAN_CONTEXT if before is None else before.attempt
            with Attempt(call.method, ticket, record, previous) as attempt:
                told = {"headrace-digest": terms.wanted.digest}
                if terms.adapter is not None:
                    told["headrace-adapter"] = terms.adapter
                options = {
                    "metadata": [*attempt.headers().items(), *told.items()],
                    "timeout": max(0.0, deadline - self._scheduler.now()),
                }
                try:
                    await call.use(ticket, options, turn)
                except DivergedError as diverged:
                    assert before is not None  # The first has nothing to repeat.
                    message = f"{before.message}, and {diverged}"
                    raise record.crashed(message, before.cause) from None
                except Lost as lost:
                    if record.completed:
                        return None
                    attempt.broke(lost.error.code)
                    loss = await self._explain(lost, ticket)
                    if loss.end is not End.WENT:
                        attempt.died(loss.cause, loss.message, loss.last_words)
                    return replace(loss, attempt=attempt.span)
        return None

    async def _explain(self, lost: Lost, ticket: Ticket) -> _Loss:
        """Why the runner is lost. Raises the error itself where it is not the runner's end."""
        error, life = lost.error, ticket.life
        if isinstance(error, Draining):
            return _Loss(life, "EXITED", "the runner is being stopped", End.WENT)
        if lost.stalled:
            message = "the runner makes no progress, or does not answer"
            return _Loss(life, "STALLED", message, End.DIED)
        # Its process tells, and may take a moment to.
        with suppress(TimeoutError):
            await asyncio.wait_for(life.gone.wait(), self._diagnosis)
        dead = ticket.runner.dead
        if dead.done():
            death = dead.result()
            # The kernel's kills for want of memory have a cause of their own, as have ours; where
            # they cannot be told from others, the call may be what took the memory.
            outside = death.cause == "SIGNAL" and not death.perhaps_memory
            end = End.KILLED if outside else End.DIED
            return _Loss(life, death.cause, death.message, end, death.detail)
        if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
            return _Loss(life, "STALLED", "the runner does not answer", End.DIED)
        raise error
