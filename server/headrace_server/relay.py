"""One call's way through the controller: wait for a runner, hand the request on, pass answers back.

The request's own bytes go to the runner and the runner's own bytes to the client; only the last
message of a stream is decoded, to add the controller's share of the time. Every stream ends with
`completed` or with an error that says why; the runner's place is given back in any case.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind

from headrace.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    HeadraceError,
    RunnerCrashed,
    from_rpc_error,
)
from headrace.telemetry import names, propagation
from headrace.v1.completion_pb2 import CompletionProgress, StreamCompletionResponse
from headrace_server.runners.diagnosis import Death
from headrace_server.scheduling.shell import Scheduler
from headrace_server.scheduling.ticket import Ticket, Wait, Wanted

logger = logging.getLogger(__name__)
_tracer = trace.get_tracer("headrace.controller")

STREAM_COMPLETION = "/headrace.v1.CompletionService/StreamCompletion"

# The first byte of a StreamCompletionResponse is the tag of its event.
_STARTED, _DELTA, _COMPLETED = b"\x0a", b"\x1a", b"\x22"
# How a call ends when the connection breaks, or the runner says so itself.
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


@dataclass
class _Progress:
    """What has happened to a call so far, over all attempts."""

    queue: float = 0.0
    load: float = 0.0
    started: bool = False
    """Whether the client has been told of a beginning, after which nothing may be repeated."""
    completed: bool = False
    last_delta: bytes = b""
    tokens: dict[int, int] = field(default_factory=dict)
    """Output tokens by choice, kept where there are several."""

    def tokens_sent(self) -> int:
        if self.last_delta:
            self.count(self.last_delta)
        return sum(self.tokens.values())

    def count(self, data: bytes) -> None:
        delta = StreamCompletionResponse.FromString(data).delta
        self.tokens[delta.choice] = delta.output_tokens


class _Lost(Exception):
    """The runner can no longer be spoken to; `error` is how that showed."""

    def __init__(self, error: HeadraceError) -> None:
        super().__init__(str(error))
        self.error = error


class Relay:
    """Relays calls to the runners that a scheduler gives out."""

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        max_time: float,
        heartbeat: float = 5.0,
        diagnosis: float = 5.0,
    ) -> None:
        """All in seconds. `max_time`: for calls without a deadline. `heartbeat`: between two
        messages to one who waits. `diagnosis`: how long a lost runner's death is waited for, so
        that its cause can be told."""
        self._scheduler = scheduler
        self._max_time = max_time
        self._heartbeat = heartbeat
        self._diagnosis = diagnosis

    async def stream(self, request: bytes, terms: Terms, write: Write, *, choices: int = 1) -> None:
        """Relay a StreamCompletion; `write` takes the messages.

        Raises the typed error that the stream is to end with.
        """
        arrived = self._scheduler.now()
        so_far = _Progress()

        async def use(ticket: Ticket, timeout: float) -> None:
            call = _stub(ticket, STREAM_COMPLETION, stream=True)
            await self._pass_on(call, request, ticket, timeout, so_far, write, choices, arrived)

        async def tell(wait: Wait) -> None:
            await write(_progress_message(wait))

        await self._attempts(STREAM_COMPLETION, terms, so_far, use, tell)

    async def unary(self, method: str, request: bytes, terms: Terms) -> bytes:
        raise NotImplementedError


async def _(x: AsyncIterator[int]) -> None: ...


__all__ = ["Cancelled", "Span", "asynccontextmanager", "time"]
