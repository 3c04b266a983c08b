"""The engine: one thread that owns every MLX object.

asyncio talks to it through one inbox, and it answers with one call onto the
event loop for each step, carrying the events of all rows. It never touches gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import mlx.core as mx

from headrace.errors import Draining, HeadraceError, InternalError, Unavailable
from headrace_runner.engine.stream import EventStream
from headrace_runner.engine.text.batch import TextBatch
from headrace_runner.engine.text.output import Output
from headrace_runner.engine.text.request import (
    Event,
    Failed,
    Finished,
    GenerationRequest,
    Prefill,
    Started,
)
from headrace_runner.engine.text.sampling import SamplingParams
from headrace_runner.models.load import LoadedModel
from headrace_runner.models.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_MEASURE_EVERY = 0.25
"""Seconds between two readings of the memory while there is work."""

_STOP_RETRY = 1.0
"""Seconds after which another runner may have taken this one's place."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A reading of the engine, made by its own thread. Sizes in bytes."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    active_bytes: int = 0
    peak_bytes: int = 0
    cache_bytes: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class _Task:
    """A request on the engine's thread."""

    uid: int
    request: GenerationRequest
    output: Output
    events: list[Event] = field(default_factory=list)
    started_at: int = 0
    first_token_at: int = 0


@dataclass(frozen=True, slots=True)
class _Submit:
    uid: int
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class _Remove:
    uid: int


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class Engine:
    """Generates text for many requests at once.

    `load` runs on the engine's thread and gives the model. `start` waits for it and for one
    generated token. When the thread fails later, every stream ends with UNAVAILABLE and `failed`
    gets the error: nothing that the thread owned can be trusted then, and the process is of no
    more use.
    """

    def __init__(
        self, load: Callable[[], LoadedModel], tokenizer: Tokenizer, *, max_rows: int
    ) -> None:
        self._load = load
        self._tokenizer = tokenizer
        self._max_rows = max_rows
        self._inbox: queue.SimpleQueue[_Submit | _Remove | _Stop] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mlx", daemon=True)
        self._ready: Future[LoadedModel] = Future()
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[BaseException] = self._loop.create_future()
        # Belongs to the event loop.
        self._streams: dict[int, EventStream] = {}
        self._next_uid = 1
        self._end: HeadraceError | None = None
        self._stopping = False
        self.requests_total = 0
        # Written by the engine's thread alone, read by anyone.
        self.stats = EngineStats()
        self.last_step = time.monotonic()
        self.running = 0
        # Belongs to the engine's thread.
        self._tasks: dict[int, _Task] = {}
        self._line: list[_Task] = []
        self._faulted: set[int] = set()
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._weights_bytes = 0
        self._measured_at = 0.0

    async def start(self) -> LoadedModel:
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
        return time.monotonic() - self.last_step if self._streams else 0.0

    def submit(self, request: GenerationRequest) -> EventStream:
        """Hands a request to the engine. Called on the event loop; close the stream when done."""
        uid = self._next_uid
        self._next_uid += 1
        if not self._streams:
            self.last_step = time.monotonic()
        stream = EventStream(on_close=lambda: self._abandon(uid))
        self._streams[uid] = stream
        if self._end is not None:
            self._end_all(self._end)
        else:
            self._inbox.put(_Submit(uid, request))
        return stream

    def _abandon(self, uid: int) -> None:
        if self._streams.pop(uid, None) is not None:
            self.requests_total += 1
            self._inbox.put(_Remove(uid))

    def _deliver(self, batch: list[tuple[int, list[Event]]]) -> None:
        """Hands a step's events to their readers. Runs on the event loop."""
        for uid, events in batch:
            stream = self._streams.get(uid)
            if stream is None:
                continue  # Closed while the step ran.
            for event in events:
                stream.push(event)
                if isinstance(event, Finished | Failed):
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
        self._weights_bytes = loaded.weights_bytes
        batch = TextBatch(loaded.model, prefill_chunk=loaded.prefill_chunk, ahead=loaded.ahead)
        _warm_up(batch)
        self._measure(batch)
        self._ready.set_result(loaded)
        while self._take_commands(batch, wait=not self._tasks):
            self._admit(batch)
            if self._tasks:
                self._step(batch)

    def _take_commands(self, batch: TextBatch, *, wait: bool) -> bool:
        """Carries out what is in the inbox; False when it is time to stop."""
        while True:
            try:
                command = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            wait = False
            match command:
                case _Stop():
                    return False
                case _Submit(uid, request):
                    self._take(uid, request)
                case _Remove(uid):
                    self._drop(batch, {uid})

    @contextmanager
    def _alone(self, uid: int, request: GenerationRequest) -> Iterator[None]:
        """Whatever goes wrong inside ends this request and no other."""
        try:
            yield
        except Exception:
            logger.exception("a request failed", extra={"request_id": request.id})
            self._faulted.add(uid)
            self._post(self._deliver, [(uid, [Failed(InternalError(""))])])

    def _take(self, uid: int, request: GenerationRequest) -> None:
        with self._alone(uid, request):
            task = _Task(uid, request, Output(request, self._tokenizer))
            self._tasks[uid] = task
            # Sorting is stable: among equals, first come is first served.
            self._line.append(task)
            self._line.sort(key=lambda task: -task.request.priority)

    def _drop(self, batch: TextBatch, uids: set[int]) -> None:
        for uid in uids:
            self._tasks.pop(uid, None)
        self._line = [task for task in self._line if task.uid not in uids]
        batch.remove(uids)
        self.running = len(batch)
        if not self._tasks:
            mx.clear_cache()
            self._measure(batch)

    def _admit(self, batch: TextBatch) -> None:
        while self._line and len(batch) < self._max_rows:
            task = self._line.pop(0)
            request = task.request
            with self._alone(task.uid, request):
                batch.add(task.uid, request.prompt, request.sampling, request.top_logprobs)
        self.running = len(batch)

    def _step(self, batch: TextBatch) -> None:
        began = time.perf_counter_ns()
        prefilled, drawn = batch.step()
        now = time.perf_counter_ns()
        for progress in prefilled:
            task = self._tasks[progress.uid]
            if not task.started_at:
                task.started_at = began
                task.events.append(Started(began))
            task.events.append(Prefill(progress.done, progress.total))
        ended: set[int] = set()
        for draw in drawn:
            task = self._tasks[draw.uid]
            task.first_token_at = task.first_token_at or now
            with self._alone(task.uid, task.request):
                delta, end = task.output.push(draw.token, draw.logprobs)
                task.events.append(delta)
                if end is not None:
                    ended.add(task.uid)
                    finished = Finished(
                        *end, task.output.tokens, task.started_at, task.first_token_at, now
                    )
                    task.events.append(finished)
        self._prompt_tokens += sum(p.total for p in prefilled if p.done >= p.total - 1)
        self._output_tokens += len(drawn)
        self.last_step = time.monotonic()
        self._flush()
        if self.last_step - self._measured_at > _MEASURE_EVERY:
            self._measure(batch)
        if ended:
            self._drop(batch, ended)
        if self._faulted:
            self._drop(batch, self._faulted)
            self._faulted = set()

    def _flush(self) -> None:
        """Sends what has come together for all requests, in one call."""
        events = [(task.uid, task.events) for task in self._tasks.values() if task.events]
        for task in self._tasks.values():
            task.events = []
        if events:
            self._post(self._deliver, events)

    def _measure(self, batch: TextBatch) -> None:
        self._measured_at = time.monotonic()
        self.stats = EngineStats(
            weights_bytes=self._weights_bytes,
            kv_bytes=batch.kv_bytes,
            active_bytes=mx.get_active_memory(),
            peak_bytes=mx.get_peak_memory(),
            cache_bytes=mx.get_cache_memory(),
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
        )

    def _post(self, call: Callable[..., None], argument: object) -> None:
        # A closed loop raises: nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, argument)


def _warm_up(batch: TextBatch) -> None:
    """Generates one token, so that what cannot work fails before the runner says it serves."""
    batch.add(0, [0, 0], SamplingParams(temperature=0.0), None)
    while not batch.step()[1]:
        pass
    batch.remove([0])
    mx.clear_cache()
