"""One attempt at a call: what is sent to a runner and heard from it, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from headrace.errors import Draining, HeadraceError, Unavailable, from_rpc_error
from headrace_server.relay.record import Record
from headrace_server.scheduling.ticket import Ticket

# How a call ends, without details of Headrace's, when its runner is gone.
_LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}


class Lost(Exception):
    """The runner can no longer be spoken to; `error` is how that showed. Or it `stalled` while the
    call was under way, whether or not it makes progress again."""

    def __init__(self, error: HeadraceError, *, stalled: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.stalled = stalled


async def ask_once(method: str, ticket: Ticket, request: bytes, options: dict[str, Any]) -> bytes:
    """A unary call to the runner. Raises its typed error, or Lost."""
    with _faults(ticket) as stalled:
        ask: Any = ticket.runner.channel.unary_unary(method)
        with _until(stalled, ask, request, options) as call:
            response: bytes = await call
            return response


async def answers(
    method: str, ticket: Ticket, request: bytes, options: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """The runner's messages. The call is cancelled when this is closed before its end.

    Raises the runner's typed error, or Lost.
    """
    with _faults(ticket) as stalled:
        ask: Any = ticket.runner.channel.unary_stream(method)
        with _until(stalled, ask, request, options) as call:
            async for data in call:
                yield data


@contextmanager
def _until(
    stalled: asyncio.Future[None], ask: Any, request: bytes, options: dict[str, Any]
) -> Iterator[Any]:
    """A call to the runner, bytes in and bytes out, that ends with this or when the runner stalls:
    one that wakes up later finds nobody to answer."""
    call = ask(request, **options)

    def cancel(_: object) -> None:
        call.cancel()

    stalled.add_done_callback(cancel)
    try:
        yield call
    finally:
        stalled.remove_done_callback(cancel)
        call.cancel()


@contextmanager
def _faults(ticket: Ticket) -> Iterator[asyncio.Future[None]]:
    """Turn what gRPC raises into the runner's own typed error, or `Lost` if it is gone.

    Gives the future that is done when the runner stalls: after a recovery it has another.
    """
    stalled = ticket.life.stalled
    channel = ticket.runner.channel
    try:
        yield stalled
    except grpc.aio.AioRpcError as failed:
        error = from_rpc_error(failed)
        gone = not error.reason and error.code in _LOST
        # CANCELLED is the runner's answer to who aborted the request, unless it comes from here.
        broken = error.code is grpc.StatusCode.CANCELLED and (stalled.done() or _closed(channel))
        if gone or broken or isinstance(error, Draining):
            raise Lost(error, stalled=stalled.done()) from None
        raise error from None
    except grpc.aio.UsageError:
        error = Unavailable("the channel to the runner is closed")
        raise Lost(error, stalled=stalled.done()) from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Nobody cancelled this call: its runner stalled, or its channel was closed under it.
        error = Unavailable("the call to the runner was broken off")
        raise Lost(error, stalled=stalled.done()) from None


def _closed(channel: grpc.aio.Channel) -> bool:
    """Whether it was closed here, which cancels the calls on it."""
    return channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN


def note_wait(ticket: Ticket, record: Record) -> None:
    """Write down how long a wait took, for `completed`."""
    begin, end = ticket.load_span
    record.waited(ticket.granted_at - ticket.asked_at - (end - begin), end - begin)
