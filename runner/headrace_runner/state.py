"""What all services of a runner share: its model and where it is in its life.

Belongs to the event loop.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from headrace.errors import (
    Draining,
    FieldViolation,
    HeadraceError,
    InvalidRequest,
    ModelMismatch,
    QueueFull,
)
from headrace.v1.common_pb2 import RunnerState
from headrace_runner.config import RunnerConfig
from headrace_runner.engine.engine import Engine
from headrace_runner.models.chat import ChatTemplate
from headrace_runner.models.load import LoadedModel
from headrace_runner.models.tokenizer import Tokenizer

_DRAIN_RETRY = 1.0
"""Seconds after which another runner may have taken this one's place."""

_QUEUE_RETRY = 1.0


@dataclass(slots=True)
class RunnerContext:
    """The runner as its services see it."""

    config: RunnerConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    engine: Engine
    context_length: int
    loaded: asyncio.Future[LoadedModel]
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nothing new is taken any more."""
    stalled: bool = False
    serving_since: float = 0.0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process is about to end: streams about the runner itself end too."""
    # The running completions, by request id.
    _calls: dict[str, asyncio.Task[object]] = field(default_factory=dict)
    _aborted: dict[str, HeadraceError] = field(default_factory=dict)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._idle.set()

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
    def loaded_model(self) -> LoadedModel | None:
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

    def begin(self, request_id: str) -> None:
        """Notes that the current task serves a completion, which has to be told with `end`.

        Raises Draining when nothing new is taken, QueueFull when as many as may wait do so, and
        InvalidRequest when the id is in use.
        """
        if self.draining.is_set():
            raise Draining(retry_after=_DRAIN_RETRY)
        waiting = self.config.max_waiting
        if len(self._calls) >= self.config.max_concurrency + waiting:
            raise QueueFull(_QUEUE_RETRY, queue="runner", limit=waiting)
        if request_id in self._calls:
            rule = f"{request_id!r} is running already; give another"
            raise InvalidRequest(violations=[FieldViolation("request_id", rule)])
        task = asyncio.current_task()
        assert task is not None
        self._calls[request_id] = task
        self._idle.clear()

    def end(self, request_id: str) -> None:
        """Notes that the completion has ended."""
        self._calls.pop(request_id, None)
        self._aborted.pop(request_id, None)
        if not self._calls:
            self._idle.set()

    def abort(self, request_id: str, error: HeadraceError) -> bool:
        """Ends a completion with an error. False when there is none of this id."""
        task = self._calls.get(request_id)
        if task is None:
            return False
        self._aborted[request_id] = error
        task.cancel()
        return True

    def abort_error(self, request_id: str) -> HeadraceError | None:
        """Why a completion was cancelled, if it was by `abort`."""
        return self._aborted.get(request_id)

    async def drain(self, grace: float) -> int:
        """Takes nothing new and waits for what runs, `grace` seconds at most; then ends it.

        Gives how many completions had to be ended.
        """
        self.draining.set()
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
            return 0
        except TimeoutError:
            late = list(self._calls)
            for request_id in late:
                self.abort(request_id, Draining(retry_after=_DRAIN_RETRY))
            await self._idle.wait()
            return len(late)
