"""The engine: one thread that owns every MLX object.

asyncio talks to it through one inbox, and it answers with one call onto the event loop for each
step, carrying the events of all requests. It never touches gRPC, nor knows what is computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import mlx.core as mx

from headrace.errors import Draining, HeadraceError, Unavailable
from headrace_runner.engine.stream import EventStream, Failed, Last
from headrace_runner.engine.worker import EngineStats, Worker

logger = logging.getLogger(__name__)

M = TypeVar("M")
R = TypeVar("R")
E = TypeVar("E")

_REST_AFTER = 1.0
"""Seconds without work after which memory is given back. Who asks again at once would pay for it:
what is given back has to be fetched again, page by page."""
_STOP_RETRY = 1.0
"""Seconds after which another runner may have taken this one's place."""


@dataclass(frozen=True, slots=True)
class _Submit(Generic[R]):
    uid: int
    request: R


@dataclass(frozen=True, slots=True)
class _Remove:
    uid: int


@dataclass(frozen=True, slots=True)
class _Park:
    uid: int
    parked: bool


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


_Command: TypeAlias = _Submit[R] | _Remove | _Park | _Stop


class Engine(ABC, Generic[M, R, E]):
    """Computes for many requests `R` at once, with a model `M`, and answers with events `E`.

    `load` runs on the engine's thread and gives the model. `start` waits for it and for the first
    thing computed with it. When the thread fails later, every stream ends with UNAVAILABLE and
    `failed` gets the error: nothing that the thread owned can be trusted then, and the process is
    of no more use.
    """

    def __init__(self, load: Callable[[], M]) -> None:
        self._load = load
        self._inbox: queue.SimpleQueue[_Command[R]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mlx", daemon=True)
        self._ready: Future[M] = Future()
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[BaseException] = self._loop.create_future()
        # Belongs to the event loop.
        self._streams: dict[int, EventStream[E]] = {}
        self._next_uid = 1
        self._end: HeadraceError | None = None
        self._stopping = False
        self.requests_total = 0
        # Written by the engine's thread alone, read by anyone.
        self.stats = EngineStats()
        self.last_step = time.monotonic()
        self._resting = False
        self._told_to_stop = False
        self.running = 0

    @abstractmethod
    def _make_worker(self, loaded: M) -> Worker[R]:
        """The one who does the work, warmed up; on the engine's thread."""

    @abstractmethod
    def _make_stream(self, uid: int) -> EventStream[E]:
        """The way of a request's events, which calls `_abandon` when it is closed early."""

    async def start(self) -> M:
        """Loads the model. Raises what the load raises."""
        self._thread.start()
        # Shielded: the thread settles this future whether or not anyone waits for it still, and an
        # error that nobody waits for is no news.
        ready = asyncio.wrap_future(self._ready)
        ready.add_done_callback(lambda done: done.exception())
        return await asyncio.shield(ready)

    async def stop(self, patience: float | None = None) -> bool:
        """Ends the thread after its current step, and every stream with DRAINING.

        False when the step has not ended within `patience` seconds: the thread is stuck then.
        """
        self._stopping = True
        self._inbox.put(_Stop())
        self._end_all(Draining(_STOP_RETRY))
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, patience)
        return not self._thread.is_alive()

    def check_wanted(self) -> None:
        """For a load under way, from any thread: raises Draining when its result is not wanted."""
        if self._stopping:
            raise Draining(_STOP_RETRY)

    @property
    def active(self) -> int:
        """Requests that are running or waiting."""
        return len(self._streams)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place in the batch."""
        return max(0, len(self._streams) - self.running)

    def stalled_for(self) -> float:
        """Seconds without a step although there is work; 0 when there is none."""
        busy = self._streams and not self._resting
        return time.monotonic() - self.last_step if busy else 0.0

    def submit(self, request: R) -> EventStream[E]:
        """Hands a request to the engine. Called on the event loop; close the stream when done."""
        uid = self._next_uid
        self._next_uid += 1
        if not self._streams:
            self.last_step = time.monotonic()
        stream = self._streams[uid] = self._make_stream(uid)
        if self._end is not None:
            self._end_all(self._end)
        else:
            self._inbox.put(_Submit(uid, request))
        return stream

    def _abandon(self, uid: int) -> None:
        if self._streams.pop(uid, None) is not None:
            self.requests_total += 1
            self._inbox.put(_Remove(uid))

    def _park(self, uid: int, parked: bool) -> None:
        self._inbox.put(_Park(uid, parked))

    def _deliver(self, batch: list[tuple[int, list[E]]]) -> None:
        """Hands a step's events to their readers. Runs on the event loop."""
        for uid, events in batch:
            stream = self._streams.get(uid)
            if stream is None:
                continue  # Closed while the step ran.
            for event in events:
                stream.push(event)
                if isinstance(event, Last):
                    del self._streams[uid]
                    self.requests_total += 1

    def _end_all(self, error: HeadraceError) -> None:
        """Ends what runs, and what may still be submitted, with an error."""
        self._end = error
        self.requests_total += len(self._streams)
        for stream in self._streams.values():
            stream.push(Failed(error))
        self._streams.clear()

    def _report_failure(self, error: BaseException) -> None:
        self._end_all(Unavailable("The runner's engine failed."))
        self.failed.set_result(error)

    # What follows runs on the engine's own thread.

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            else:
                logger.critical("the engine failed", exc_info=error)
                self._post(self._report_failure, error)
        finally:
            # Without this the process may abort when the thread ends.
            mx.clear_streams()

    def _serve(self) -> None:
        loaded = self._load()
        worker = self._make_worker(loaded)
        self.stats = worker.stats
        self._ready.set_result(loaded)
        while self._take_commands(worker):
            worker.admit()
            self.running = worker.rows
            worker.step()
            self._note(worker)

    def _note(self, worker: Worker[R]) -> None:
        """The work has come further."""
        self.running = worker.rows
        self.last_step = time.monotonic()
        self.stats = worker.stats

    def _look_up(self, worker: Worker[R]) -> bool:
        """For a worker whose step is long, from within it: what came is taken, and what is done so
        far counts as progress. False when the step is to end, since it is time to stop."""
        self._note(worker)
        return self._take_commands(worker)

    def _take_commands(self, worker: Worker[R]) -> bool:
        """Carries out what is in the inbox, which it waits for if there is nothing to compute.

        False when it is time to stop.
        """
        self._resting = not worker.busy
        while not self._told_to_stop:
            try:
                command = self._await_command(worker) if self._resting else self._inbox.get_nowait()
            except queue.Empty:
                return True
            self.last_step = time.monotonic() if self._resting else self.last_step
            self._resting = False
            match command:
                case _Stop():
                    self._told_to_stop = True
                case _Submit(uid, request):
                    worker.take(uid, request)
                case _Remove(uid):
                    worker.drop({uid})
                case _Park(uid, parked):
                    worker.park(uid, parked=parked)
        return False

    def _await_command(self, worker: Worker[R]) -> _Command[R]:
        try:
            return self._inbox.get(timeout=_REST_AFTER)
        except queue.Empty:
            worker.rest()
            self.stats = worker.stats
            return self._inbox.get()

    def _send(self, events: list[tuple[int, list[E]]]) -> None:
        self._post(self._deliver, events)

    def _post(self, call: Callable[..., None], argument: object) -> None:
        # A closed loop raises: nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, argument)
