"""One call's way through the controller: wait for a runner, hand the request on, pass answers back.

The request's own bytes go to the runner and the runner's own bytes to the client; only the last
message of a stream is decoded, to add the controller's share of the time. Every stream ends with
`completed` or with an error that says why; the runner's place is given back in any case.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from headrace.errors import (
    DeadlineExceeded,
    Draining,
    HeadraceError,
    RunnerCrashed,
    Unavailable,
    from_rpc_error,
)
from headrace.telemetry import names, propagation
from headrace.v1.completion_pb2 import (
    CompletionProgress,
    StreamCompletionRequest,
    StreamCompletionResponse,
)
from headrace_server.scheduling.shell import Scheduler
from headrace_server.scheduling.state import Prefixes
from headrace_server.scheduling.ticket import Ticket, Wait, Wanted

logger = logging.getLogger(__name__)
_tracer = trace.get_tracer("headrace.controller")

_STREAM_COMPLETION = "/headrace.v1.CompletionService/StreamCompletion"

# The first byte of a StreamCompletionResponse is the tag of its event.
_STARTED, _DELTA, _COMPLETED = b"\x0a", b"\x1a", b"\x22"

# How a call ends, without details of Headrace's, when its runner is gone.
_LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}

Write = Callable[[bytes], Awaitable[None]]


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


@dataclass
class _Record:
    """What has happened to a call so far, over all its attempts."""

    queue: float = 0.0
    """Seconds."""
    load: float = 0.0
    """Seconds."""
    started: bytes = b""
    """What the client was told of the beginning. Another attempt is held to it."""
    completed: bool = False
    last_delta: bytes = b""
    tokens: dict[int, int] = field(default_factory=dict)
    """Output tokens sent, by choice."""

    def count(self, delta: bytes) -> None:
        message = StreamCompletionResponse.FromString(delta).delta
        self.tokens[message.choice] = message.output_tokens

    def tokens_sent(self) -> int:
        if self.last_delta:
            self.count(self.last_delta)
        return sum(self.tokens.values())


class _Lost(Exception):
    """The runner can no longer be spoken to; `error` is how that showed."""

    def __init__(self, error: HeadraceError) -> None:
        super().__init__(error.message)
        self.error = error


class Relay:
    """Relays calls to the runners that a scheduler gives out."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        max_time: float,
        heartbeat: float = 2.0,
        diagnosis: float = 5.0,
    ) -> None:
        """All in seconds. `max_time`: for calls without a deadline. `heartbeat`: between two
        messages to one who waits. `diagnosis`: how long a lost runner's death is waited for, so
        that the cause that is told is the true one."""
        self._scheduler = scheduler
        self._max_time = max_time
        self._heartbeat = heartbeat
        self._diagnosis = diagnosis
        self._limits: set[asyncio.Timeout] = set()
        self._ended = False

    def end(self) -> None:
        """End every call, now and from now on, with Draining."""
        self._ended = True
        for limit in self._limits:
            with suppress(RuntimeError):  # It is expiring by itself in this moment.
                limit.reschedule(self._scheduler.now())

    async def stream(self, request: bytes, terms: Terms, write: Write, *, choices: int = 1) -> None:
        """Relay a StreamCompletion of so many choices; `write` takes the messages.

        Raises the typed error that the stream is to end with.
        """
        arrived = self._scheduler.now()
        record = _Record()

        async def tell(wait: Wait) -> None:
            await write(_progress(wait))

        async def use(ticket: Ticket, options: dict[str, Any]) -> None:
            again = record.started
            asked = _as_started(request, again) if again else request
            async with aclosing(_answers(ticket, asked, options)) as answers:
                async for data in answers:
                    event = data[:1]
                    if event == _DELTA:
                        record.last_delta = data
                        ticket.advanced()
                        if choices > 1:
                            record.count(data)
                    elif event == _STARTED:
                        if again:
                            continue
                        record.started = data
                    elif event == _COMPLETED:
                        total = self._scheduler.now() - arrived
                        data = _with_own_share(data, record, total, resumed=bool(again))
                    await write(data)
                    record.completed |= event == _COMPLETED
            if not record.completed:
                raise RuntimeError(f"runner {ticket.life.id} ended a stream without `completed`")

        outcome = "completed"
        try:
            await self._within_time(_STREAM_COMPLETION, terms, record, tell, use)
        except BaseException as error:
            outcome = _kind(error)
            raise
        finally:
            ended = {
                "model": terms.wanted.name,
                "outcome": outcome,
                "output_tokens": record.tokens_sent(),
                "seconds": round(self._scheduler.now() - arrived, 3),
            }
            logger.info("stream ended", extra=ended)

    async def unary(self, method: str, request: bytes, terms: Terms) -> bytes:
        """Relay a unary call, `method` as in "/package.Service/Method"; gives the response.

        Raises the typed error that the call is to end with.
        """
        response = b""

        async def tell(_: Wait) -> None:
            pass

        async def use(ticket: Ticket, options: dict[str, Any]) -> None:
            nonlocal response
            with _faults():
                call: Any = ticket.runner.channel.unary_unary(method)
                response = await call(request, **options)

        await self._within_time(method, terms, _Record(), tell, use)
        return response

    async def _within_time(
        self,
        method: str,
        terms: Terms,
        record: _Record,
        tell: Callable[[Wait], Awaitable[None]],
        use: Callable[[Ticket, dict[str, Any]], Awaitable[None]],
    ) -> None:
        limit = self._max_time if terms.time_remaining is None else terms.time_remaining
        deadline = self._scheduler.now() + limit
        timeout = asyncio.timeout_at(deadline)
        try:
            async with timeout:
                self._limits.add(timeout)
                if await self._attempt(method, terms, deadline, record, tell, use, last=False):
                    return
                await self._attempt(method, terms, deadline, record, tell, use, last=True)
        except TimeoutError:
            if self._ended:
                raise Draining(1.0) from None
            raise DeadlineExceeded(f"the call was not done within {limit:g} s") from None
        finally:
            self._limits.discard(timeout)

    async def _attempt(
        self,
        method: str,
        terms: Terms,
        deadline: float,
        record: _Record,
        tell: Callable[[Wait], Awaitable[None]],
        use: Callable[[Ticket, dict[str, Any]], Awaitable[None]],
        *,
        last: bool,
    ) -> bool:
        """Try once. False: the runner died before its first token, and another may be tried."""
        ticket = self._scheduler.ask(
            terms.wanted,
            keep_alive=terms.keep_alive,
            priority=terms.priority,
            deadline=deadline,
            prefixes=terms.prefixes,
            prompt_bytes=terms.prompt_bytes,
        )
        with ticket:
            async with aclosing(ticket.waiting(self._heartbeat)) as waits:
                async for wait in waits:
                    await tell(wait)
            _note_wait(ticket, record)
            try:
                with _span(method, ticket) as headers:
                    options = {
                        "metadata": [*headers.items(), ("headrace-digest", terms.wanted.key)],
                        "timeout": max(0.0, deadline - self._scheduler.now()),
                    }
                    await use(ticket, options)
            except _Lost as lost:
                if record.completed:
                    return True
                error = await self._explain(lost, ticket, record)
                if last or record.last_delta or not isinstance(error, RunnerCrashed):
                    raise error from None
                extra = {"runner_id": ticket.life.id, "model": terms.wanted.name}
                logger.warning("trying another runner: %s", error, extra=extra)
                return False
        return True

    async def _explain(self, lost: _Lost, ticket: Ticket, record: _Record) -> HeadraceError:
        """Why the runner is gone; its process tells, and may take a moment to."""
        if isinstance(lost.error, Draining):
            return lost.error  # It lives, and says so itself.
        with suppress(TimeoutError):
            await asyncio.wait_for(ticket.life.gone.wait(), self._diagnosis)
        dead = ticket.runner.dead
        tokens = record.tokens_sent() if record.started else None
        if dead.done():
            death = dead.result()
            return RunnerCrashed(death.message, cause=death.cause, tokens_sent=tokens)
        if lost.error.code is grpc.StatusCode.UNAVAILABLE and not lost.error.reason:
            return RunnerCrashed("the runner does not answer", cause="STALLED", tokens_sent=tokens)
        return lost.error


async def _answers(
    ticket: Ticket, request: bytes, options: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """The runner's messages. The call is cancelled when this is closed before its end."""
    with _faults():
        # Without serializers: bytes in, bytes out.
        method: Any = ticket.runner.channel.unary_stream(_STREAM_COMPLETION)
        call = method(request, **options)
        try:
            async for data in call:
                yield data
        finally:
            call.cancel()


@contextmanager
def _faults() -> Iterator[None]:
    """Turn what gRPC raises into the runner's own typed error, or `_Lost` if it is gone."""
    try:
        yield
    except grpc.aio.AioRpcError as failed:
        error = from_rpc_error(failed)
        gone = not error.reason and error.code in _LOST
        if gone or isinstance(error, Draining):
            raise _Lost(error) from None
        raise error from None
    except grpc.aio.UsageError:
        raise _Lost(Unavailable("the channel to the runner is closed")) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Nobody cancelled this call: its channel was closed under it.
        raise _Lost(Unavailable("the channel to the runner was closed")) from None


@contextmanager
def _span(method: str, ticket: Ticket) -> Iterator[dict[str, str]]:
    """The span of one attempt; gives the headers that carry it to the runner."""
    attributes = {
        names.RPC_SYSTEM_NAME: "grpc",
        names.RPC_METHOD: method.removeprefix("/"),
        names.HEADRACE_RUNNER_ID: ticket.life.id,
        names.HEADRACE_MODEL_DIGEST: ticket.life.wanted.key,
    }
    span = _tracer.start_span(method.removeprefix("/"), kind=SpanKind.CLIENT, attributes=attributes)
    try:
        yield propagation.headers(trace.set_span_in_context(span))
        span.set_attribute(names.RPC_STATUS_CODE, grpc.StatusCode.OK.name)
    except BaseException as error:
        failed = error.error if isinstance(error, _Lost) else error
        code = failed.code.name if isinstance(failed, HeadraceError) else type(failed).__name__
        span.set_attribute(names.RPC_STATUS_CODE, code)
        span.set_attribute(names.ERROR_TYPE, code)
        span.set_status(trace.StatusCode.ERROR, code)
        raise
    finally:
        span.end()


def _kind(error: BaseException) -> str:
    """What a stream's end is called in the log."""
    if isinstance(error, HeadraceError):
        return error.reason or error.code.name
    return "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__


def _note_wait(ticket: Ticket, record: _Record) -> None:
    """Write down how long a wait took, for `completed` and for the trace."""
    begin, end = ticket.load_span
    record.load += end - begin
    record.queue += ticket.granted_at - ticket.asked_at - (end - begin)
    if not trace.get_current_span().is_recording():
        return
    epoch = time.time_ns() - int(ticket.granted_at * 1e9)
    queued_until = begin if end > begin else ticket.granted_at
    spans = [(names.SPAN_QUEUE, ticket.asked_at, queued_until), (names.SPAN_LOAD, begin, end)]
    for name, since, until in spans[: 2 if end > begin else 1]:
        span = _tracer.start_span(name, start_time=epoch + int(since * 1e9))
        span.end(epoch + int(until * 1e9))


def _progress(wait: Wait) -> bytes:
    progress = CompletionProgress(
        queue_position=wait.queue_position, load_fraction=wait.load_fraction
    )
    return StreamCompletionResponse(progress=progress).SerializeToString()


def _as_started(request: bytes, started: bytes) -> bytes:
    """The request that gives what the client was told to expect, on another runner."""
    message = StreamCompletionRequest.FromString(request)
    told = StreamCompletionResponse.FromString(started).started
    message.request_id = told.id
    message.sampling.seed = told.seed
    return message.SerializeToString()


def _with_own_share(data: bytes, record: _Record, total: float, *, resumed: bool) -> bytes:
    """A `completed` with the controller's part of the time, and its tries."""
    message = StreamCompletionResponse.FromString(data)
    message.completed.resumed += resumed
    timings = message.completed.timings
    queue = timings.queue.ToNanoseconds() * 1e-9 + record.queue
    for part, seconds in ((timings.queue, queue), (timings.load, record.load)):
        part.CopyFrom(duration(seconds))
    timings.total.CopyFrom(duration(total))
    return message.SerializeToString()


def duration(seconds: float) -> Duration:
    """Seconds as a message."""
    message = Duration()
    message.FromNanoseconds(int(seconds * 1e9))
    return message
