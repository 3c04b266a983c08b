"""What all services of a runner share: its model and where it is in its life.

Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from headrace.errors import (
    Draining,
    HeadraceError,
    ModelMismatch,
    QueueFull,
)
from headrace.v1.common_pb2 import ModelKind, RunnerState
from headrace.v1.runner_pb2 import RunnerLimits
from headrace_runner.config import RunnerConfig
from headrace_runner.engine.engine import Engine

_DRAIN_RETRY = 1.0
"""Seconds after which another runner may have taken this one's place."""

_QUEUE_RETRY = 1.0


@dataclass(slots=True)
class _Call:
    request_id: str
    task: asyncio.Task[object]
    aborted: HeadraceError | None = None

    def abort(self, error: HeadraceError) -> None:
        self.aborted = error
        self.task.cancel()


class Loaded(Protocol):
    """What any model is, once it is loaded."""

    @property
    def weights(self) -> str: ...
    @property
    def weights_bytes(self) -> int: ...


T = TypeVar("T", bound=Engine[Any, Any, Any])
M = TypeVar("M", bound=Loaded)


@dataclass(slots=True, kw_only=True)
class RunnerContext(ABC, Generic[T, M]):
    """The runner as its services see it, whatever its model is for."""

    config: RunnerConfig
    engine: T
    loaded: asyncio.Future[M]
    on_drain: Callable[[float], None] = lambda _: None
    """Told the grace of a drain, in seconds, before anything shows that there is one."""
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nothing new is taken any more."""
    stalled: bool = False
    serving_since: float = 0.0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process is about to end: streams about the runner itself end too."""
    # The running requests, by serial: request ids are the callers' and need not differ.
    _calls: dict[int, _Call] = field(default_factory=dict)
    _serials: itertools.count[int] = field(default_factory=itertools.count)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._idle.set()

    @property
    @abstractmethod
    def kind(self) -> ModelKind.ValueType:
        """What the model is for."""

    @property
    @abstractmethod
    def limits(self) -> RunnerLimits:
        """What a request may ask for."""

    @property
    def state(self) -> RunnerState.ValueType:
        """Where the runner is in its life."""
        if self.draining.is_set():
            return RunnerState.RUNNER_STATE_DRAINING
        if not self.loaded.done():
            return RunnerState.RUNNER_STATE_LOADING
        if self.loaded.exception() is not None:
            return RunnerState.RUNNER_STATE_DEAD
        if self.stalled:
            return RunnerState.RUNNER_STATE_STALLED
        return RunnerState.RUNNER_STATE_SERVING

    @property
    def loaded_model(self) -> M | None:
        """The model, once it is loaded."""
        ready = self.loaded.done() and self.loaded.exception() is None
        return self.loaded.result() if ready else None

    @property
    def uptime(self) -> float:
        """Seconds since it began to serve."""
        return time.monotonic() - self.serving_since if self.serving_since else 0.0

    def check_target(self, model: str, metadata: dict[str, str]) -> None:
        """Raises ModelMismatch for a request that was meant for another model.

        The controller names the digest, since several names may share one runner; who calls a
        runner directly gives its name or its digest.
        """
        digest = metadata.get("headrace-digest")
        if digest is not None:
            if digest != self.config.digest:
                raise ModelMismatch(wanted=digest, serving=self.config.digest)
        elif model not in (self.config.name, self.config.digest):
            raise ModelMismatch(wanted=model, serving=self.config.name)

    def begin(self, request_id: str) -> int:
        """Notes that the current task serves a request; gives the serial to `end` it with.

        Raises Draining when nothing new is taken, and QueueFull when as many as may wait do so.
        """
        if self.draining.is_set():
            raise Draining(retry_after=_DRAIN_RETRY)
        waiting = self.config.max_waiting
        if len(self._calls) >= self.limits.max_concurrency + waiting:
            raise QueueFull(_QUEUE_RETRY, queue="runner", limit=waiting)
        task = asyncio.current_task()
        assert task is not None
        serial = next(self._serials)
        self._calls[serial] = _Call(request_id, task)
        self._idle.clear()
        return serial

    def end(self, serial: int) -> None:
        """Notes that the request has ended."""
        del self._calls[serial]
        if not self._calls:
            self._idle.set()

    def abort(self, request_id: str, error: HeadraceError) -> bool:
        """Ends all requests of this id with an error. False when there is none."""
        calls = [call for call in self._calls.values() if call.request_id == request_id]
        for call in calls:
            call.abort(error)
        return bool(calls)

    def abort_error(self, serial: int) -> HeadraceError | None:
        """Why a request was cancelled, if it was here."""
        return self._calls[serial].aborted

    async def drain(self, grace: float) -> int:
        """Takes nothing new and waits for what runs, `grace` seconds at most; then ends it.

        Gives how many requests had to be ended.
        """
        self.on_drain(grace)
        self.draining.set()
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
            return 0
        except TimeoutError:
            late = list(self._calls.values())
            for call in late:
                call.abort(Draining(retry_after=_DRAIN_RETRY))
            await self._idle.wait()
            return len(late)


AnyRunner: TypeAlias = RunnerContext[Any, Any]
