"""The engine's work on images, on the thread that owns every MLX object.

Requests are taken, drawn in batches of what is alike, and dropped here. A step is a whole batch;
within it the engine is looked up to at every step and phase of the model, where also those who have
given up are noticed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import mlx.core as mx

from headrace.errors import HeadraceError, InsufficientMemory, InternalError
from headrace_runner.engine.image.batch import Batch
from headrace_runner.engine.image.line import Line, Piece
from headrace_runner.engine.image.memory import (
    WorkingBytes,
    images_that_fit,
    needed,
    remedy,
    smaller,
)
from headrace_runner.engine.image.pace import Pace
from headrace_runner.engine.image.request import (
    Drawn,
    Event,
    Finished,
    ImageRequest,
    Preview,
    Progress,
    Started,
)
from headrace_runner.engine.memory import give_back, in_use
from headrace_runner.engine.stream import Failed
from headrace_runner.engine.tally import Steps
from headrace_runner.engine.worker import Deliver, EngineStats
from headrace_runner.models.device import is_allocation_failure
from headrace_runner.models.pipeline import (
    Drawing,
    ImagePipeline,
    Phase,
    Pixels,
    Unwatched,
    smallest_drawing,
)

logger = logging.getLogger(__name__)

_ORDER = {phase: place for place, phase in enumerate(Phase)}
_MEASURE_EVERY = 0.25
"""Seconds between two readings of the memory while there is work."""


@dataclass(frozen=True, slots=True)
class LoadedPipeline:
    """A model for images that is ready to draw."""

    pipeline: ImagePipeline
    memory_available: int
    """Bytes that were free for everything else when it had been loaded."""

    @property
    def weights(self) -> str:
        return self.pipeline.weights

    @property
    def weights_bytes(self) -> int:
        return self.pipeline.weights_bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what is drawn at once."""

    max_batch: int
    """Images; the model's own bound holds as well."""
    working: WorkingBytes
    free: Callable[[], int]
    """Bytes that may be taken now."""
    telling: float = 0.05
    """Seconds at least between two steps of a drawing that are told. Each costs every process on
    the way to the client some tenths of a millisecond."""


@dataclass(slots=True)
class _Task:
    """A request on the engine's thread."""

    request: ImageRequest
    left: int
    """Images that are not ready."""
    started: bool = False
    position: int | None = None
    """In line, as it was told last."""
    told: dict[int, tuple[int, int]] = field(default_factory=dict)
    """How far each image was at most, as it was told. One that is drawn anew gets there again."""
    shown: dict[int, int] = field(default_factory=dict)
    """The step of the last preview of each image."""

    def is_news(self, index: int, phase: Phase, step: int) -> bool:
        """Whether an image is further than was told; if so, it is told now."""
        now = _ORDER[phase], step
        if index in self.told and now <= self.told[index]:
            return False
        self.told[index] = now
        return True


class _Unwanted(Exception):
    """Nobody wants what is being drawn any more."""


class ImageWorker:
    """All requests of one model, from their arrival to their end."""

    def __init__(
        self,
        pipeline: ImagePipeline,
        limits: Limits,
        deliver: Deliver[Event],
        look_up: Callable[[ImageWorker], bool],
        check_wanted: Callable[[], None],
    ) -> None:
        """`look_up` has the engine take what came meanwhile; False: the work is to end.
        `check_wanted` raises where a model that is being warmed up is not wanted any more."""
        self._pipeline = pipeline
        self._limits = limits
        self._deliver = deliver
        self._look_up = look_up
        self._tasks: dict[int, _Task] = {}
        self._line = Line()
        self._batch: Batch | None = None
        self._batches = count(1)
        self._pace = Pace()
        self._steps = Steps()
        self._measured_at = 0.0
        self.stats = EngineStats(weights_bytes=pipeline.weights_bytes)
        pipeline.draw([smallest_drawing(pipeline.traits)], _WarmUp(check_wanted))
        mx.clear_cache()
        self._measure()

    @property
    def busy(self) -> bool:
        """Whether there is something to draw."""
        return self._batch is not None or bool(self._line)

    @property
    def rows(self) -> int:
        """Requests of which something is being drawn."""
        return 0 if self._batch is None else len({piece.uid for piece in self._batch.pieces})

    def take(self, uid: int, request: ImageRequest) -> None:
        """Puts a request in line."""
        self._tasks[uid] = _Task(request, len(request.drawings))
        self._line.add(uid, request)
        self._tell_waiting()

    def drop(self, uids: set[int]) -> None:
        """Forgets requests. What is being drawn for nobody else ends at its next step."""
        self._forget(uids)
        self._tell_waiting()

    def park(self, uid: int, *, parked: bool) -> None:
        """Nothing: whose reader is behind holds its own finished files and no one else up."""

    def admit(self) -> None:
        """Takes the next drawings that go together out of the line, as many as fit in memory."""
        while self._batch is None and (first := self._line.first) is not None:
            most = min(self._limits.max_batch, self._pipeline.traits.max_batch)
            free = self._limits.free()
            try:
                most = images_that_fit(first.drawing, most, self._limits.working, free)
            except Exception as error:  # noqa: BLE001 - as in `step`
                self._fail([first], error)
                continue
            if most:
                self._batch = Batch(next(self._batches), self._line.take(most), self._pace)
                self._tell_waiting()
            else:
                self._end(first.uid, self._no_room(first.drawing, free, free))

    def step(self) -> None:
        """Draws what was admitted, to its end."""
        batch = self._batch
        if batch is None:
            return
        self._start(batch)
        try:
            drawings = [piece.drawing for piece in batch.pieces]
            images = self._pipeline.draw(drawings, _Watch(self, batch))
            sizes = [pixels.shape[:2] for pixels in images]
            if sizes != [(drawing.height, drawing.width) for drawing in drawings]:
                raise ValueError(f"the model gave images of {sizes}")
            self._finish(batch, images)
        except _Unwanted:
            pass
        except Exception as error:  # noqa: BLE001 - it ends its own requests, and they are told
            self._fail(batch.pieces, error)
        finally:
            self._batch = None
        self._measure()

    def rest(self) -> None:
        """Gives back what is kept for reuse."""
        give_back()
        self._measure()

    def entered(self, batch: Batch, phase: Phase, total: int) -> None:
        """A phase of what is being drawn begins. Raises _Unwanted where it is for nobody."""
        batch.begin(phase, total, time.perf_counter_ns())
        self._check(batch)
        self._tell_drawn_for(batch)

    def advanced(self, batch: Batch, done: int, preview: Callable[[], Sequence[Pixels]]) -> None:
        """More of the phase is done. Raises _Unwanted where it is for nobody."""
        seconds = batch.advance(done, time.perf_counter_ns())
        if batch.phase is Phase.DENOISING:
            self._steps.add(seconds, len(batch.pieces))
        self._check(batch)
        if batch.is_to_tell(self._limits.telling):
            self._tell_drawn_for(batch)
        if batch.phase is Phase.DENOISING and done < batch.total:
            self._send_previews(batch, preview)

    def wants(self, batch: Batch, place: int) -> bool:
        """Whether somebody still waits for this image of what is being drawn."""
        return self._wanted(batch.pieces[place])

    def _check(self, batch: Batch) -> None:
        """Has the engine look around: what came is taken, and who has gone is dropped."""
        if not self._look_up(self) or not any(map(self._wanted, batch.pieces)):
            raise _Unwanted
        if time.monotonic() - self._measured_at > _MEASURE_EVERY:
            self._measure()

    def _wanted(self, piece: Piece) -> bool:
        return piece.uid in self._tasks

    def _start(self, batch: Batch) -> None:
        now = time.perf_counter_ns()
        events: list[tuple[int, list[Event]]] = []
        for uid in {piece.uid: None for piece in batch.pieces}:
            task = self._tasks[uid]
            if not task.started:
                task.started = True
                events.append((uid, [Started(now)]))
        if events:
            self._deliver(events)

    def _tell_drawn_for(self, batch: Batch) -> None:
        """Tells those whose images are being drawn how far these are."""
        assert batch.phase is not None
        now, rest = time.perf_counter_ns(), batch.rest()
        waits = self._waits() if self._line else {}
        events: dict[int, list[Event]] = {}
        for piece in filter(self._wanted, batch.pieces):
            if not self._tasks[piece.uid].is_news(piece.index, batch.phase, batch.done):
                continue
            wait = waits.get(piece.uid, 0.0)
            due = None if rest is None or wait is None else now + int((rest + wait) * 1e9)
            progress = Progress(batch.phase, piece.index, batch.done, batch.total, due=due)
            events.setdefault(piece.uid, []).append(progress)
        if events:
            self._deliver(list(events.items()))

    def _send_previews(self, batch: Batch, preview: Callable[[], Sequence[Pixels]]) -> None:
        asked = [
            (place, piece)
            for place, piece in enumerate(batch.pieces)
            if (task := self._tasks.get(piece.uid)) is not None
            and (every := task.request.preview_every) is not None
            and batch.done % every == 0
            and batch.done > task.shown.get(piece.index, 0)
        ]
        if asked:
            images = preview()
            for place, piece in asked:
                self._tasks[piece.uid].shown[piece.index] = batch.done
                shown = Preview(piece.index, batch.done, images[place])
                self._deliver([(piece.uid, [shown])])
            batch.resume(time.perf_counter_ns())

    def _finish(self, batch: Batch, images: Sequence[Pixels]) -> None:
        now = time.perf_counter_ns()
        batch.close(now)
        events: dict[int, list[Event]] = {}
        for piece, pixels in zip(batch.pieces, images, strict=True):
            if (task := self._tasks.get(piece.uid)) is None:
                continue
            drawn = Drawn(piece.index, pixels, tuple(batch.parts), batch.number, len(batch.pieces))
            events.setdefault(piece.uid, []).append(drawn)
            task.left -= 1
            if not task.left:
                events[piece.uid].append(Finished(now))
        self._count()
        self._deliver(list(events.items()))
        self._forget({uid for uid in events if not self._tasks[uid].left})

    def _fail(self, pieces: Sequence[Piece], error: Exception) -> None:
        """Ends the request of a drawing that failed. Of several, nobody knows whose fault it was:
        each is drawn anew alone."""
        mx.clear_cache()
        wanted = [piece for piece in pieces if self._wanted(piece)]
        if len(pieces) > 1:
            logger.warning("%d images failed together: %s", len(pieces), error, exc_info=error)
            self._line.put_back(wanted)
            return
        for piece in wanted:
            request = self._tasks[piece.uid].request
            extra = {"request_id": request.id}
            if isinstance(error, HeadraceError):
                # Its traceback holds what was being computed, and may wait long for its reader.
                error.__cause__ = error.__context__ = None
                self._end(piece.uid, error.with_traceback(None))
            elif is_allocation_failure(error):
                request.context.run(logger.warning, "out of memory: %s", error, extra=extra)
                drawing = piece.drawing
                # It was to fit, so the estimate is wrong: half of it is the best guess there is.
                guess = needed(drawing, self._limits.working) // 2
                self._end(piece.uid, self._no_room(drawing, self._limits.free(), guess))
            else:
                request.context.run(logger.error, "a request failed", exc_info=error, extra=extra)
                self._end(piece.uid, InternalError(""))

    def _no_room(self, drawing: Drawing, free: int, for_smaller: int) -> InsufficientMemory:
        """`for_smaller`: bytes within which another size is to be."""
        working, traits = self._limits.working, self._pipeline.traits
        needs = needed(drawing, working)
        size = smaller(drawing, traits, working, for_smaller)
        return InsufficientMemory(
            f"{drawing.width}x{drawing.height} needs {needs} bytes of memory and {free} are free; "
            f"try again later, or {remedy(size)}",
            needs=needs,
            free=free,
        )

    def _end(self, uid: int, error: HeadraceError) -> None:
        self._deliver([(uid, [Failed(error)])])
        self._forget({uid})

    def _forget(self, uids: set[int]) -> None:
        for uid in uids:
            self._tasks.pop(uid, None)
            self._line.drop(uid)

    def _tell_waiting(self) -> None:
        """Tells those who wait where they are in line, if that has changed."""
        now = time.perf_counter_ns()
        rest = 0.0 if self._batch is None else self._batch.rest()
        events: list[tuple[int, list[Event]]] = []
        for ahead, (uid, wait) in enumerate(self._waits().items()):
            task = self._tasks[uid]
            if not task.started and task.position != ahead:
                task.position = ahead
                due = None if rest is None or wait is None else now + int((rest + wait) * 1e9)
                events.append((uid, [Progress(None, position=ahead, due=due)]))
        if events:
            self._deliver(events)

    def _waits(self) -> dict[int, float | None]:
        """Of all in line: seconds that their drawings take from when what is being drawn is ready
        until their last one is; None where nobody knows."""
        waits: dict[int, float | None] = {}
        rest: float | None = 0.0
        for uid, drawing, images in self._line.waiting():
            more = self._pace.rest(drawing, images)
            rest = None if rest is None or more is None else rest + more
            waits[uid] = rest
        return waits

    def _measure(self) -> None:
        self._measured_at = time.monotonic()
        self.stats = replace(
            self.stats,
            **in_use(),
        )
        self._count()

    def _count(self) -> None:
        self.stats = replace(self.stats, **self._steps.read())


class _Watch:
    """Hears of the work on one batch."""

    def __init__(self, worker: ImageWorker, batch: Batch) -> None:
        self._worker = worker
        self._batch = batch

    def phase(self, phase: Phase, total: int) -> None:
        self._worker.entered(self._batch, phase, total)

    def step(self, done: int, preview: Callable[[], Sequence[Pixels]]) -> None:
        self._worker.advanced(self._batch, done, preview)

    def wanted(self, place: int) -> bool:
        return self._worker.wants(self._batch, place)


class _WarmUp(Unwatched):
    """Ends the first drawing where the model is not wanted any more."""

    def __init__(self, check_wanted: Callable[[], None]) -> None:
        self._check_wanted = check_wanted

    def phase(self, phase: Phase, total: int) -> None:
        self._check_wanted()

    def step(self, done: int, preview: Callable[[], Sequence[Pixels]]) -> None:
        self._check_wanted()
