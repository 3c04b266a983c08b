"""The engine's work on text, on the thread that owns every MLX object.

Requests are taken, admitted to the batch, stepped and dropped here; what they give goes out through
one call a step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import mlx.core as mx

from headrace.errors import (
    FieldViolation,
    HeadraceError,
    InsufficientMemory,
    InternalError,
    InvalidRequest,
)
from headrace_runner.engine.memory import give_back, in_use
from headrace_runner.engine.stream import Failed
from headrace_runner.engine.tally import Steps
from headrace_runner.engine.text.adapters import Adapters
from headrace_runner.engine.text.batch import TextBatch
from headrace_runner.engine.text.guide import GrammarError
from headrace_runner.engine.text.layouts import choose_layout
from headrace_runner.engine.text.memory import plan
from headrace_runner.engine.text.output import Output
from headrace_runner.engine.text.request import Event, ScoringRequest, Started, TextRequest
from headrace_runner.engine.text.room import Room
from headrace_runner.engine.text.rows import Drawn, NewRow, Prefilled
from headrace_runner.engine.text.sampling import SamplingParams, choice_seed
from headrace_runner.engine.text.scoring import Scorer, Scoring
from headrace_runner.engine.text.task import Task
from headrace_runner.engine.worker import Deliver, EngineStats
from headrace_runner.models.device import is_allocation_failure
from headrace_runner.models.load import LoadedModel
from headrace_runner.models.lora import Mixture
from headrace_runner.models.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_MEASURE_EVERY = 0.25
"""Seconds between two readings of the memory while there is work."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that the operator sets."""

    max_rows: int
    kv_bytes: int | None = None
    prefix_bytes: int | None = None
    drafts: bool = True
    """Whether tokens may be guessed and verified, where that pays."""
    adapters: int = 8
    """Adapters in memory."""


class TextWorker:
    """All requests of one model, from their arrival to their end."""

    def __init__(
        self, loaded: LoadedModel, tokenizer: Tokenizer, limits: Limits, deliver: Deliver[Event]
    ) -> None:
        """Raises UnsupportedModel for a model that can be in no batch."""
        self._tokenizer = tokenizer
        self._max_rows = limits.max_rows
        self._deliver = deliver
        memory = plan(
            loaded.memory_available,
            loaded.weights_bytes,
            kv_bytes=limits.kv_bytes,
            prefix_bytes=limits.prefix_bytes,
        )
        mixture = Mixture()
        self._layout = choose_layout(
            loaded.model, on_cpu=loaded.on_cpu, prefix_bytes=memory.prefix_bytes, mixture=mixture
        )
        # On a CPU products in half precision are slow, and its models are in float32 mostly.
        adapters = Adapters(loaded.model, mixture, most=limits.adapters, in_float32=loaded.on_cpu)
        self._room = Room(memory.kv_bytes, adapters)
        self._batch = TextBatch(
            self._layout,
            prefill_chunk=loaded.prefill_chunk,
            ahead=not loaded.on_cpu,
            drafts=limits.drafts and loaded.on_cpu and self._layout.drafts,
        )
        self._scorer = Scorer(
            self._layout, most=loaded.prefill_chunk, vocabulary=tokenizer.vocab_size
        )
        self._scores_next = False
        """Whether scoring goes before prompts in the next step: they take turns."""
        self._tasks: dict[int, Task] = {}
        self._line: list[Task | Scoring] = []
        self._faulted: set[int] = set()
        self._owners: dict[int, tuple[Task, int]] = {}
        """The task and the choice behind each row of the batch."""
        self._next_row = 1
        self._totals = dict.fromkeys(
            ("prompts", "cached_prompts", "prompt_tokens", "cached_tokens", "output_tokens"), 0
        )
        self._steps = Steps()
        self._measured_at = 0.0
        self.stats = EngineStats(weights_bytes=loaded.weights_bytes)
        _warm_up(self._batch)
        self._layout.forget()
        self._measure()

    @property
    def busy(self) -> bool:
        """Whether there is something to compute. Who waits in line waits for who runs."""
        return self.rows > 0

    @property
    def rows(self) -> int:
        """Rows that are computed, in prefill or after, and requests that are scored."""
        return len(self._batch) + len(self._scorer)

    def take(self, uid: int, request: TextRequest) -> None:
        """Puts a request in line."""
        with self._alone(uid, request):
            if isinstance(request, ScoringRequest):
                self._join_line(Scoring(uid, request, self._borders(request.prompt)))
                return
            choices = range(request.choices)
            task = Task(uid, request, [Output(request, self._tokenizer, c) for c in choices])
            self._tasks[uid] = task
            for choice, output in enumerate(task.outputs):
                if (end := output.restore(request.resumed(choice))) is not None:
                    task.ends[choice] = end
            self._join_line(task)

    def _join_line(self, task: Task | Scoring) -> None:
        # Sorting is stable: among equals, first come is first served.
        self._line.append(task)
        self._line.sort(key=lambda task: -task.request.priority)

    def drop(self, uids: set[int]) -> None:
        """Forgets requests, wherever they are."""
        if not uids:
            return
        tasks = [task for uid in uids if (task := self._tasks.pop(uid, None)) is not None]
        self._line = [task for task in self._line if task.uid not in uids]
        if tasks:
            self._remove_rows([row for task in tasks for row in task.rows])
        self._scorer.drop(uids)
        for uid in uids:
            self._room.free(uid)
        if not (self._tasks or self._scorer):
            self._measure()

    def rest(self) -> None:
        """Gives back what is kept for reuse."""
        give_back()
        self._measure()

    def park(self, uid: int, *, parked: bool) -> None:
        """Takes a request out of the batch for a while, or back in.

        Its place and its reservation are free for others meanwhile, and its keys and values are
        remembered as far as there is room. It comes back through the line.
        """
        task = self._tasks.get(uid)
        if task is None or not task.rows or task.parked is parked:
            return
        task.parked = parked
        if parked:
            self._batch.park(task.rows)
            self._room.free(uid)
            self._line = [other for other in self._line if other is not task]
            self._measure()
        else:
            self._join_line(task)

    def step(self) -> None:
        """Computes the next step of all who are admitted, and admits others where some end."""
        scores = bool(self._scorer) and (self._scores_next or not self._batch.joining)
        self._scores_next = not scores
        if self._batch:
            self._generate(prompts=not scores)
        if scores and self._scorer:
            self._score()

    def _score(self) -> None:
        """Scores some of what is to be scored."""
        try:
            budget, began = self._batch.spare(), time.perf_counter_ns()
            tokens, scored = self._scorer.step(budget)
        except Exception as error:
            if not is_allocation_failure(error):
                raise
            self._room.shed()
            given_up = self._scorer.shed()
            self._give_up(given_up.uid, given_up.request, error)
            self.drop({given_up.uid})
            self.admit()
            return
        now = time.perf_counter_ns()
        if tokens:
            self._batch.spent(tokens, (now - began) / 1e9)
        for scoring in scored:
            if scoring.passes == 1:
                self._count_prompt(scoring.request.tokens, scoring.cached)
                self._deliver([(scoring.uid, [Started(began, scoring.cached)])])
        over = [scoring for scoring in scored if scoring.over]
        if over:
            self._count()
            self._deliver([(scoring.uid, [scoring.result(now)]) for scoring in over])
            self.drop({scoring.uid for scoring in over})
        if time.monotonic() - self._measured_at > _MEASURE_EVERY:
            self._measure()
        self.admit()

    def _generate(self, *, prompts: bool) -> None:
        """Computes the next step of all that generate."""
        began, rows = time.perf_counter_ns(), len(self._batch)
        try:
            prefilled, drawn = self._batch.step(prompts=prompts)
        except Exception as error:
            if not is_allocation_failure(error):
                raise
            self._shed(error)
            return
        now = time.perf_counter_ns()
        self._steps.add((now - began) / 1e9, rows)
        for progress in prefilled:
            self._note(progress, began, now)
        ended: set[int] = set()
        for draw in drawn:
            owner = self._owners.get(draw.uid)
            if owner is None or owner[1] in owner[0].ends:
                continue  # Drafted tokens behind the end.
            task, choice = owner
            task.first_token_at = task.first_token_at or now
            if draw.fault is not None:
                self._break_off(task, draw.fault)
                continue
            with self._alone(task.uid, task.request):
                self._push(task, choice, draw)
                if task.over:
                    task.finish(now)
                    ended.add(task.uid)
        if ended:
            self._count()
        self._flush()
        if time.monotonic() - self._measured_at > _MEASURE_EVERY:
            self._measure()
        self.drop(ended)
        self._drop_faulted()
        self.admit()

    def admit(self) -> None:
        """Admits to the batch, from the line, whom there is room for."""
        while self._line:
            task = self._line[0]
            rows, needed = self._needs(task)
            if self.rows and self.rows + rows > self._max_rows:
                break
            with self._alone(task.uid, task.request):
                wanted = task.uid, needed, task.request.adapter
                if not task.request.context.run(self._room.take, *wanted):
                    break
            self._line.pop(0)
            if task.uid in self._faulted:
                continue
            if isinstance(task, Scoring):
                self._scorer.add(task)
                continue
            with self._alone(task.uid, task.request):
                if task.rows:
                    self._batch.unpark(task.rows)
                else:
                    self._start(task)
        self._drop_faulted()
        if self.stats.adapters_bytes != self._room.adapters_bytes:
            self.stats = replace(self.stats, adapters_bytes=self._room.adapters_bytes)

    def _needs(self, task: Task | Scoring) -> tuple[int, int]:
        """How many rows, and how many bytes of keys and values."""
        if isinstance(task, Scoring):
            return 1, self._scorer.row_bytes(task.request)
        choices = max(1, len(task.outputs) - len(task.ends))
        longest = len(task.request.prompt) + task.request.max_tokens
        return choices, choices * self._layout.row_bytes(longest)

    def _start(self, task: Task) -> None:
        request = task.request
        if task.over:  # It was resumed behind its end.
            now = time.perf_counter_ns()
            task.started_at = task.first_token_at = now
            task.events.append(Started(now, 0))
            task.finish(now)
            self._flush()
            self.drop({task.uid})
            return
        # Choices that go on from the same tokens have them computed once.
        alike: dict[tuple[int, ...], list[int]] = {}
        for choice in range(len(task.outputs)):
            if choice not in task.ends:
                alike.setdefault(request.resumed(choice), []).append(choice)
        borders = self._borders(request.prompt)
        for resume, choices in alike.items():
            rows = [self._new_row(task, choice) for choice in choices]
            self._batch.add(
                request.prompt, rows, resume=resume, priority=request.priority, borders=borders
            )

    def _borders(self, prompt: list[int]) -> list[int]:
        return [i + 1 for i, token in enumerate(prompt) if token in self._tokenizer.eos_ids]

    def _new_row(self, task: Task, choice: int) -> NewRow:
        uid = self._next_row
        self._next_row += 1
        task.rows.append(uid)
        self._owners[uid] = task, choice
        sampling = task.request.sampling
        seed = choice_seed(sampling.seed, choice)
        guidance = task.request.guidance
        guide = None if guidance is None else guidance.begin(task.request.resumed(choice))
        adapter = None if task.request.adapter is None else task.request.adapter.key
        return NewRow(uid, replace(sampling, seed=seed), task.request.top_logprobs, guide, adapter)

    def _push(self, task: Task, choice: int, draw: Drawn) -> None:
        self._totals["output_tokens"] += 1
        delta, end = task.outputs[choice].push(draw.token, draw.logprobs)
        if delta is not None:
            task.events.append(delta)
        if end is not None:
            task.ends[choice] = end
            if not task.over:
                self._remove_rows([draw.uid])

    def _note(self, progress: Prefilled, began: int, now: int) -> None:
        task, _ = self._owners[progress.uid]
        if task.note(progress, began, now):
            self._count_prompt(progress.total, progress.cached)

    def _shed(self, error: Exception) -> None:
        """Ends the newest request, for which there was no memory, and goes on with the others."""
        self._room.shed()
        task, _ = self._owners[self._batch.shed()[0]]
        self._give_up(task.uid, task.request, error)
        self.drop({task.uid})
        self.admit()

    def _remove_rows(self, rows: list[int]) -> None:
        self._batch.remove(rows)
        for row in rows:
            self._owners.pop(row, None)

    def _give_up(self, uid: int, request: TextRequest, error: Exception) -> None:
        """Ends a request for which there was no memory."""
        extra = {"request_id": request.id, "left": self.rows}
        request.context.run(logger.warning, "out of memory: %s", error, extra=extra)
        failure = InsufficientMemory("the runner ran out of memory; try again with fewer at once")
        self._end(uid, failure)

    @contextmanager
    def _alone(self, uid: int, request: TextRequest) -> Iterator[None]:
        """Whatever goes wrong inside ends this request and no other."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - logged in the request's own context
            self._failed(uid, request, error)

    def _failed(self, uid: int, request: TextRequest, error: Exception) -> None:
        """Ends a request that met an error: a typed one, a lack of memory, or a bug of ours."""
        self._faulted.add(uid)
        if isinstance(error, HeadraceError):
            self._end(uid, error)
        elif is_allocation_failure(error):
            self._give_up(uid, request, error)
        else:
            extra = {"request_id": request.id}
            request.context.run(logger.error, "a request failed", exc_info=error, extra=extra)
            self._end(uid, InternalError(""))

    def _break_off(self, task: Task, fault: Exception) -> None:
        """Ends a request whose guide can lead it no further."""
        if task.uid in self._faulted:
            return
        guidance = task.request.guidance
        if guidance is None or not isinstance(fault, GrammarError):
            self._failed(task.uid, task.request, fault)
            return
        self._faulted.add(task.uid)
        rule = f"could not be followed any further: {fault}"
        self._end(task.uid, InvalidRequest(violations=[FieldViolation(guidance.field, rule)]))

    def _drop_faulted(self) -> None:
        faulted, self._faulted = self._faulted, set()
        self.drop(faulted)

    def _end(self, uid: int, error: HeadraceError) -> None:
        self._deliver([(uid, [Failed(error)])])

    def _flush(self) -> None:
        """Sends what has come together for all requests, in one call."""
        events = [(task.uid, task.events) for task in self._tasks.values() if task.events]
        for task in self._tasks.values():
            task.events = []
        if events:
            self._deliver(events)

    def _measure(self) -> None:
        self._measured_at = time.monotonic()
        self.stats = replace(
            self.stats,
            kv_bytes=self._batch.kv_bytes + self._scorer.nbytes,
            kv_reserved_bytes=self._room.reserved,
            kv_limit_bytes=self._room.limit,
            prefix_bytes=self._layout.remembered_bytes,
            adapters_bytes=self._room.adapters_bytes,
            **in_use(),
        )
        self._count()

    def _count_prompt(self, tokens: int, cached: int) -> None:
        self._totals["prompts"] += 1
        self._totals["cached_prompts"] += cached > 0
        self._totals["prompt_tokens"] += tokens
        self._totals["cached_tokens"] += cached

    def _count(self) -> None:
        """Who has an answer may ask at once what was counted for it."""
        self.stats = replace(self.stats, **self._steps.read(), **self._totals)


def _warm_up(batch: TextBatch) -> None:
    """Generates one token, so that what cannot work fails before the runner says it serves.

    From a prompt that also tells how long a token's prefill takes, about.
    """
    batch.add([0] * 17, [NewRow(0, SamplingParams(temperature=0.0))])
    while not batch.step()[1]:
        pass
    batch.remove([0], remember=False)
    mx.clear_cache()
