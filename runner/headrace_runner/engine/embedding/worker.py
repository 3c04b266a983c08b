"""The engine's work on embeddings, on the thread that owns every MLX object.

A step is one batch, bounded in its padded tokens; requests come and go between two steps. Faults
and lack of memory end the request that they belong to, and no other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import mlx.core as mx
import numpy as np

from headrace.errors import HeadraceError, InsufficientMemory, InternalError
from headrace_runner.engine.embedding.line import Line, Row
from headrace_runner.engine.embedding.request import EmbeddingRequest, Event, Finished, Started
from headrace_runner.engine.memory import give_back, in_use
from headrace_runner.engine.stream import Failed
from headrace_runner.engine.tally import Steps
from headrace_runner.engine.worker import Deliver, EngineStats
from headrace_runner.models.device import is_allocation_failure
from headrace_runner.models.encoders.architectures import BATCH_TOKENS
from headrace_runner.models.encoders.encoder import Vectors

logger = logging.getLogger(__name__)


class Embedder(Protocol):
    """What computes the vectors."""

    @property
    def weights_bytes(self) -> int: ...

    def embed(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """A vector for each row of tokens."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what is computed at once."""

    max_requests: int
    """In one batch."""
    working: Callable[[int, int], int]
    """Bytes beside the weights while so many rows of a length are computed."""
    free: Callable[[], int]
    """Bytes that may be taken now."""
    batch_tokens: int = BATCH_TOKENS
    """Padded tokens of a batch."""


@dataclass(slots=True)
class _Task:
    """A request on the engine's thread."""

    request: EmbeddingRequest
    left: int
    """Inputs without their vectors."""
    vectors: Vectors | None = None
    batches: int = 0


class EmbeddingWorker:
    """All requests of one model, from their arrival to their end."""

    def __init__(self, embedder: Embedder, limits: Limits, deliver: Deliver[Event]) -> None:
        """Computes one vector, so that the first request need not wait for what a first one
        takes."""
        self._embedder = embedder
        self._limits = limits
        self._deliver = deliver
        self._tasks: dict[int, _Task] = {}
        self._line = Line()
        self._batch: list[Row] = []
        self._budget = limits.batch_tokens
        """Of the next batch: less for a while after memory ran out."""
        self._steps = Steps()
        self.stats = EngineStats(weights_bytes=embedder.weights_bytes)
        embedder.embed([[0] * 8, [0]])
        mx.clear_cache()
        self._measure()

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""
        return bool(self._batch) or bool(self._line)

    @property
    def rows(self) -> int:
        """Requests of which something is being computed."""
        return len({row.uid for row in self._batch})

    def take(self, uid: int, request: EmbeddingRequest) -> None:
        """Puts a request in line."""
        self._tasks[uid] = _Task(request, len(request.inputs))
        self._line.add(uid, [len(tokens) for tokens in request.inputs])

    def drop(self, uids: set[int]) -> None:
        """Forgets requests, and their rows in the batch that is next."""
        for uid in uids:
            self._tasks.pop(uid, None)
            self._line.drop(uid)
        self._batch = [row for row in self._batch if row.uid not in uids]

    def park(self, uid: int, *, parked: bool) -> None:
        """Nothing: an answer is one message, which holds nobody up."""

    def admit(self) -> None:
        """Takes the next batch out of the line, as large as memory allows."""
        while not self._batch and (first := self._line.longest()) is not None:
            free = self._limits.free()
            needs = self._limits.working(1, first.length)
            if needs > free:
                self._end(first.uid, _no_room(first.length, needs, free))
                continue
            tokens = min(self._budget, free // needs * first.length)
            self._batch = self._line.take(tokens, self._limits.max_requests)

    def step(self) -> None:
        """Computes the batch that was admitted."""
        batch, began = self._batch, time.perf_counter_ns()
        if not batch:
            return
        self._start(batch, began)
        try:
            rows = [self._tasks[row.uid].request.inputs[row.index] for row in batch]
            vectors = self._embedder.embed(rows)
            if not np.isfinite(vectors).all():
                raise ValueError("the model gave numbers that are not finite")
            self._finish(batch, vectors, began)
        except Exception as error:  # noqa: BLE001 - it ends its own requests, and they are told
            self._fail(batch, error)
        finally:
            self._batch = []
        self._measure()

    def rest(self) -> None:
        """Gives back what is kept for reuse."""
        give_back()
        self._measure()

    def _start(self, batch: Sequence[Row], now: int) -> None:
        begun = {row.uid for row in batch if not self._tasks[row.uid].batches}
        for uid in {row.uid for row in batch}:
            self._tasks[uid].batches += 1
        if begun:
            self._deliver([(uid, [Started(now)]) for uid in begun])

    def _finish(self, batch: Sequence[Row], vectors: Vectors, began: int) -> None:
        now = time.perf_counter_ns()
        self._budget = min(2 * self._budget, self._limits.batch_tokens)
        self._steps.add((now - began) / 1e9, len(batch))
        tokens = sum(row.length for row in batch)
        self.stats = replace(
            self.stats,
            prompts=self.stats.prompts + len(batch),
            prompt_tokens=self.stats.prompt_tokens + tokens,
        )
        for row, vector in zip(batch, vectors, strict=True):
            task = self._tasks[row.uid]
            if task.vectors is None:
                shape = (len(task.request.inputs), len(vector))
                task.vectors = np.empty(shape, dtype=np.float32)
            task.vectors[row.index] = vector
            task.left -= 1
        events: list[tuple[int, list[Event]]] = []
        for uid in {row.uid for row in batch}:
            task = self._tasks[uid]
            if not task.left and task.vectors is not None:
                events.append((uid, [Finished(now, task.vectors, task.batches)]))
                del self._tasks[uid]
        if events:
            self._deliver(events)

    def _fail(self, batch: Sequence[Row], error: Exception) -> None:
        """Ends the request of a row that failed alone. What failed together is computed again: in
        smaller batches for want of memory, else each request apart, since nobody knows whose fault
        it was."""
        mx.clear_cache()
        short = is_allocation_failure(error)
        if short and len(batch) > 1:
            self._budget = _padded(batch) // 2
            logger.warning("out of memory with %d rows: %s", len(batch), error)
            self._line.put_back(batch)
            return
        if self.rows > 1:
            logger.warning("%d requests failed together: %s", self.rows, error, exc_info=error)
            self._line.put_back(batch, alone=True)
            return
        row = batch[0]
        request = self._tasks[row.uid].request
        extra = {"request_id": request.id}
        if isinstance(error, HeadraceError):
            self._end(row.uid, error)
        elif short:
            request.context.run(logger.warning, "out of memory: %s", error, extra=extra)
            needs = self._limits.working(1, row.length)
            self._end(row.uid, _no_room(row.length, needs, self._limits.free()))
        else:
            request.context.run(logger.error, "a request failed", exc_info=error, extra=extra)
            self._end(row.uid, InternalError(""))

    def _end(self, uid: int, error: HeadraceError) -> None:
        self._deliver([(uid, [Failed(error)])])
        self._tasks.pop(uid, None)
        self._line.drop(uid)

    def _measure(self) -> None:
        self.stats = replace(
            self.stats,
            **in_use(),
            **self._steps.read(),
        )


def _padded(batch: Sequence[Row]) -> int:
    """Tokens that are computed for a batch."""
    return len(batch) * max(row.length for row in batch)


def _no_room(length: int, needs: int, free: int) -> InsufficientMemory:
    return InsufficientMemory(
        f"an input of {length} tokens needs {needs} bytes of memory and {free} are free; "
        "try again later, or with shorter inputs",
        needs=needs,
        free=free,
    )
