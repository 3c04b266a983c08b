"""The streams that an AsyncClient gives: as in `_streams`, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

import grpc

from headrace import types
from headrace._folds import Fold, WatchFold
from headrace._trace import TraceSlot, failure
from headrace.errors import Cancelled, HeadraceError

EventT = TypeVar("EventT")
ResultT = TypeVar("ResultT")


class AsyncStream(Generic[EventT, ResultT]):
    """A call whose events arrive one by one.

    Iterate it, or take the whole with `collect()`. It ends quietly only when it is complete:
    otherwise the error that ended it is raised. Leaving the `async with` block cancels what
    still runs, and so does cancelling a task that waits for an event.
    """

    def __init__(self, call: Any, fold: Fold[Any, EventT, ResultT], trace: TraceSlot) -> None:
        self._call = call
        self._responses = aiter(call)
        self._fold = fold
        self._trace = trace
        self._failure: HeadraceError | None = None

    @property
    def trace_id(self) -> str:
        """The trace of this call: 32 hexadecimal digits. Empty until the call is under way."""
        return self._trace.trace_id

    def __aiter__(self) -> AsyncIterator[EventT]:
        return self

    async def __anext__(self) -> EventT:
        """The next event.

        Raises:
            HeadraceError: the call failed, was cancelled, or ended without being complete.
        """
        if self._failure:
            raise self._failure
        try:
            while True:
                event = self._fold.add(await anext(self._responses))
                if event is not None:
                    return event
        except StopAsyncIteration:
            self._fold.result(self.trace_id)
            raise
        except grpc.RpcError as error:
            self._failure = failure(error, self._trace)
            raise self._failure from error
        except asyncio.CancelledError:
            # gRPC says it the same way whether `cancel` was called or the task was cancelled.
            task = asyncio.current_task()
            if self._failure and not (task and task.cancelling()):
                raise self._failure from None
            self._call.cancel()
            self._note_cancelled()
            raise
        except BaseException:  # nobody will read the rest
            self.cancel()
            raise

    async def collect(self) -> ResultT:
        """Reads to the end and gives the whole, what was read before included.

        Raises:
            HeadraceError: the call failed, was cancelled, or ended without being complete.
        """
        async for _ in self:
            pass
        return self._fold.result(self.trace_id)

    def cancel(self) -> None:
        """Ends the call; what is read afterwards raises Cancelled. Does nothing after the end."""
        if self._call.cancel():
            self._note_cancelled()

    close = cancel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def _note_cancelled(self) -> None:
        if self._failure is None:
            self._failure = Cancelled("the stream was cancelled")
            self._failure.add_note(f"trace {self.trace_id}")


class AsyncCompletionStream(AsyncStream[types.CompletionEvent, types.Completion]):
    """A completion as it is generated."""

    @property
    async def text(self) -> AsyncIterator[str]:
        """The output's text, piece by piece."""
        async for event in self:
            if isinstance(event, types.Delta) and event.text:
                yield event.text


class AsyncImageStream(AsyncStream[types.ImageEvent, types.Images]):
    """Images as they are drawn."""


class AsyncTransferStream(AsyncStream[types.TransferProgress, types.Model]):
    """A pull or an import as it goes on."""


class AsyncVerifyStream(AsyncStream[types.VerifyEvent, types.Verification]):
    """A verification as it goes on."""


class AsyncModelWatch(AsyncStream[types.ModelsEvent, NoReturn]):
    """The models and their runners as they change. It goes on until it is cancelled or fails."""

    @property
    def models(self) -> tuple[types.Model, ...]:
        """All models by name, as of the last event. With a `resume_token` given, what has changed
        since then alone."""
        return self._watched.models

    @property
    def resume_token(self) -> str | None:
        """Of the last checkpoint, to go on from with another watch. None before the first."""
        return self._watched.resume_token

    @property
    def _watched(self) -> WatchFold:
        fold = self._fold
        assert isinstance(fold, WatchFold)
        return fold
