"""One request that a runner serves, from its arrival to its end."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Protocol

from headrace_runner.state import AnyRunner


class Record(Protocol):
    """What telemetry has of a request."""

    def failed(self, error: BaseException) -> None:
        """The request has ended otherwise than it should."""

    def end(self) -> None:
        """Nothing more will come."""


class Call:
    """Counts among the runner's requests while it is entered, so that a drain waits for it and an
    abort finds it, and keeps its record whole on every way out."""

    def __init__(self, runner: AnyRunner, serial: int, record: Record) -> None:
        """`serial`: from `RunnerContext.begin`."""
        self._runner = runner
        self._serial = serial
        self._record = record

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raises, in place of the cancellation, the error that the request was aborted with."""
        aborted = None
        # Which of the two comes depends on where the call is cancelled: here, or in its sending.
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            aborted = self._runner.abort_error(self._serial)
        if error is not None:
            self._record.failed(aborted or error)
        self._record.end()
        self._runner.end(self._serial)
        if aborted is not None:
            raise aborted from None
