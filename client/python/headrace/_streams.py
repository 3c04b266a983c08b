"""The blocking streams that a Client gives."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

import grpc

from headrace import types
from headrace._folds import Fold, WatchFold
from headrace._trace import TraceSlot, failure

EventT = TypeVar("EventT")
ResultT = TypeVar("ResultT")


class Stream(Generic[EventT, ResultT]):
    """A call whose events arrive one by one.

    Iterate it, or take the whole with `collect()`. It ends quietly only when it is complete:
    otherwise the error that ended it is raised. Leaving the `with` block cancels what still runs.
    """

    def __init__(self, call: Any, fold: Fold[Any, EventT, ResultT], trace: TraceSlot) -> None:
        self._call = call
        self._fold = fold
        self._trace = trace

    @property
    def trace_id(self) -> str:
        """The trace of this call: 32 hexadecimal digits."""
        return self._trace.trace_id

    def __iter__(self) -> Iterator[EventT]:
        return self

    def __next__(self) -> EventT:
        """The next event.

        Raises:
            HeadraceError: the call failed, was cancelled, or ended without being complete.
        """
        try:
            while True:
                event = self._fold.add(next(self._call))
                if event is not None:
                    return event
        except StopIteration:
            self._fold.result(self.trace_id)
            raise
        except grpc.RpcError as error:
            raise failure(error, self._trace) from error
        except BaseException:  # also Ctrl-C: nobody will read the rest
            self.cancel()
            raise

    def collect(self) -> ResultT:
        """Reads to the end and gives the whole, what was read before included.

        Raises:
            HeadraceError: the call failed, was cancelled, or ended without being complete.
        """
        for _ in self:
            pass
        return self._fold.result(self.trace_id)

    def cancel(self) -> None:
        """Ends the call; what is read afterwards raises Cancelled. Does nothing after the end."""
        self._call.cancel()

    close = cancel

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()


class CompletionStream(Stream[types.CompletionEvent, types.Completion]):
    """A completion as it is generated."""

    @property
    def text(self) -> Iterator[str]:
        """The output's text, piece by piece."""
        for event in self:
            if isinstance(event, types.Delta) and event.text:
                yield event.text


class ImageStream(Stream[types.ImageEvent, types.Images]):
    """Images as they are drawn."""


class TransferStream(Stream[types.TransferProgress, types.Model]):
    """A pull or an import as it goes on."""


class VerifyStream(Stream[types.VerifyEvent, types.Verification]):
    """A verification as it goes on."""


class ModelWatch(Stream[types.ModelsEvent, NoReturn]):
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
