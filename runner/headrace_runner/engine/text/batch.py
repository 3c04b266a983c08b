"""Rows of one model, prefilled and decoded together: continuous batching.

A row joins after its prefill and leaves whenever it is removed; both happen
between steps. Everything in this module belongs to one thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import mlx.core as mx
import numpy as np

from headrace_runner.engine.text.drafts import Cost, Drafting, Lookup, Worth
from headrace_runner.engine.text.layout import Layout, as_tokens
from headrace_runner.engine.text.logprobs import PendingLogprobs, logprobs
from headrace_runner.engine.text.pace import Pace, shares
from headrace_runner.engine.text.rows import Drawn, Joining, NewRow, Prefilled, Row, again
from headrace_runner.engine.text.sampling import sample
from headrace_runner.models.device import is_allocation_failure

_Chunks: TypeAlias = Sequence[tuple[Any, Sequence[int]]]
"""Tokens to compute of prompts, each with its state in the layout."""


class TextBatch:
    """The rows of one model.

    `prefill_chunk` is how many prompt tokens are computed at once at most, over all prompts; what
    it is between two steps, `Pace` says. With `ahead` a step is launched before the one before it
    is read, so that a device of its own never waits for the host; a row that has ended is then
    computed once more in vain. A CPU is device and host in one: there each token is read as soon as
    it is drawn. With `drafts`, which is not for `ahead`, the tokens of a row that is alone are
    guessed and verified, several in a step, where it pays.
    """

    def __init__(
        self, layout: Layout[Any], *, prefill_chunk: int, ahead: bool, drafts: bool = False
    ) -> None:
        self._layout = layout
        self._pace = Pace(prefill_chunk)
        self._ahead = ahead
        self._line: list[Joining] = []
        self._rows: dict[int, Row] = {}
        self._parked: dict[int, Row] = {}
        self._begun_at: float | None = None
        """When the first rows began, as long as others that came with them do not decode."""
        self._launched = 0
        """Prompt tokens in the pass that is under way, beside rows that decode."""
        # The tokens drawn last, [rows], whose rows these are, and what is read beside them.
        self._next = mx.zeros((0,), mx.uint32)
        self._order: list[int] = []
        self._aside: tuple[PendingLogprobs, list[int]] | None = None
        self._drafts = drafts
        self._cost = Cost()

    def __len__(self) -> int:
        """Rows in line and in the batch, but for those that are parked."""
        return len(self._rows) + sum(len(joining.rows) for joining in self._line)

    @property
    def joining(self) -> bool:
        """Whether there are prompts in line."""
        return bool(self._line)

    @property
    def kv_bytes(self) -> int:
        """Bytes of all keys and values, of what is remembered too."""
        states = [joining.state for joining in self._line if joining.state is not None]
        return self._layout.nbytes + sum(int(state.nbytes) for state in states)

    def add(
        self,
        prompt: list[int],
        rows: Sequence[NewRow],
        *,
        resume: Sequence[int] = (),
        priority: int = 0,
        borders: Sequence[int] = (),
    ) -> None:
        """Puts rows in line that begin with one prompt of at least one token.

        `resume` is what they have drawn before. Of a higher priority go first. At `borders` other
        prompts are likely to differ.
        """
        if not prompt:
            raise ValueError("a row needs at least one token")
        context = [*prompt, *resume]
        joining = Joining(
            context, [Row(new, context, len(resume), priority) for new in rows], priority, borders
        )
        self._insert(joining)

    def remove(self, uids: Iterable[int], *, remember: bool = True) -> None:
        """Takes rows out, wherever they are; what they have computed is remembered."""
        gone = set(uids)
        self._leave_line(gone, remember=remember)
        for uid in gone:
            self._parked.pop(uid, None)
        self._leave(gone & self._rows.keys(), remember=remember)

    def park(self, uids: Iterable[int]) -> None:
        """Takes rows out until they are unparked. What they have computed is remembered."""
        wanted = set(uids)
        self._parked |= {row.new.uid: row for row in self._leave_line(wanted, remember=True)}
        self._parked |= {uid: row for uid, row in self._rows.items() if uid in wanted}
        self._leave(wanted & self._rows.keys(), remember=True)

    def unpark(self, uids: Iterable[int]) -> None:
        """Puts parked rows in line again."""
        for uid in uids:
            if (row := self._parked.pop(uid, None)) is not None:
                self._insert(again(row))

    def _insert(self, joining: Joining) -> None:
        place = len(self._line)
        while place and self._line[place - 1].priority < joining.priority:
            place -= 1
        self._line.insert(place, joining)

    @contextmanager
    def _spare_memory(self) -> Iterator[None]:
        """For what is good to have but not needed: where memory is short, all such is dropped."""
        try:
            yield
        except Exception as error:
            if not is_allocation_failure(error):
                raise
            self._layout.forget()

    def _leave_line(self, uids: set[int], *, remember: bool) -> list[Row]:
        left = []
        for joining in self._line:
            left += [row for row in joining.rows if row.new.uid in uids]
            joining.rows = [row for row in joining.rows if row.new.uid not in uids]
            if not joining.rows and remember and joining.state is not None:
                with self._spare_memory():
                    self._layout.remember(as_tokens(joining.tokens), joining.state)
        self._line = [joining for joining in self._line if joining.rows]
        return left

    def _leave(self, uids: set[int], *, remember: bool) -> None:
        for uid in uids:
            row = self._rows.pop(uid)
            if remember:
                with self._spare_memory():
                    self._layout.remember_row(as_tokens(row.known), uid)
        if uids:
            try:
                self._layout.keep(set(self._rows))
                self._arrange()  # Now: one of them may come back before the next step.
            except Exception as error:
                if not is_allocation_failure(error):
                    raise
                self._restart()

    def spare(self) -> int:
        """How many tokens may be computed now in a pass of its own, beside the rows that decode.

        To be told to `spent`.
        """
        if self._order:
            mx.eval(self._next)  # Or the step under way would count as part of it.
        return self._pace.tokens(decoding=bool(self._rows))

    def spent(self, tokens: int, seconds: float) -> None:
        """A pass of its own took so long for so many tokens."""
        self._pace.prefilled(tokens, seconds, decoding=bool(self._rows))

    def step(self, *, prompts: bool = True) -> tuple[list[Prefilled], list[Drawn]]:
        """Computes some of the prompts, and the next token of every row that has its own behind.

        Without `prompts` these wait: what may be computed beside the rows is for somebody else.
        """
        began = time.perf_counter()
        if self._line and self._order:
            mx.eval(self._next)  # Or the step under way would count as part of the prefill.
        hurried = bool(self._rows) and not self._gathering()
        budget = self._pace.tokens(decoding=hurried) if prompts else 0
        if hurried and self._line and budget <= self._layout.together:
            chunks = self._chunks(budget)
            rows, drawn = len(self._rows), self._decode(chunks)
            self._measured(_count(chunks), time.perf_counter() - began, rows)
            return self._progress(chunks), drawn
        waited = time.perf_counter() - began
        prefilled = self._prefill(budget, decoding=hurried)
        if not self._rows:
            return prefilled, []
        began = time.perf_counter()
        alone = self._drafts and len(self._rows) == 1 and not self._line
        drawn = self._draft() if alone else self._decode()
        seconds = waited + time.perf_counter() - began
        self._measured(0, seconds, len(self._rows), beside=bool(prefilled))
        return prefilled, drawn

    def _measured(self, tokens: int, seconds: float, rows: int, *, beside: bool = False) -> None:
        """A step took so long in which so many prompt tokens were launched; `beside` a prefill.

        A step ahead, what was waited for is the pass that was launched before.
        """
        if self._ahead:
            tokens, self._launched = self._launched, tokens
        if tokens:
            self._pace.together(tokens, seconds, rows=rows)
        else:
            self._pace.decoded(seconds, rows=rows, beside=beside)

    def _gathering(self) -> bool:
        """Whether prompts that came with the first rows are computed before these go on at pace."""
        if self._begun_at is not None:
            first = max((row.priority for row in self._rows.values()), default=0)
            left = sum(joining.remaining for joining in self._line if joining.priority >= first)
            if not left or not self._pace.gathers(left, time.perf_counter() - self._begun_at):
                self._begun_at = None
        return self._begun_at is not None

    def shed(self) -> list[int]:
        """After an allocation failed: gives up the newest row, and begins all others anew.

        Gives the row that was given up, or all that begin with its prompt and have not begun yet.
        """
        self._restart()
        newest = max(self._line, key=lambda joining: joining.uid)
        self._line.remove(newest)
        return [row.new.uid for row in newest.rows]

    def _restart(self) -> None:
        """Has all rows begin anew, with nothing in memory.

        Nothing is lost: their tokens are known, and draws depend on nothing else.
        """
        rows = sorted(self._rows.values(), key=lambda row: row.new.uid)
        waiting = [Joining(j.tokens, j.rows, j.priority, j.borders) for j in self._line]
        self._rows, self._line = {}, [*map(again, rows), *waiting]
        self._order, self._aside, self._launched = [], None, 0
        self._next = mx.zeros((0,), mx.uint32)
        self._layout.reset()
        self._layout.forget()
        mx.clear_cache()

    def _decode(self, chunks: _Chunks = ()) -> list[Drawn]:
        self._arrange()
        guided = any(row.new.guide is not None for row in self._rows.values())
        if not self._ahead or guided:  # What may come next depends on what came.
            drawn = self._read(self._next, self._aside, self._drawing())
            self._launch(chunks)
            return drawn + self._read(self._next, self._aside, self._order)
        # A row's first input is the end of its prompt, not something it drew.
        before = self._next, self._aside, self._drawing()
        self._launch(chunks)
        return self._read(*before, in_flight=True)

    def _read(
        self,
        tokens: mx.array,
        aside: tuple[PendingLogprobs, list[int]] | None,
        drawing: Sequence[int],
        *,
        in_flight: bool = False,
    ) -> list[Drawn]:
        """Waits for a draw of the rows `drawing`; `in_flight`: there is another after it."""
        if not drawing:
            return []
        values: list[int] = tokens.tolist()  # type: ignore[assignment]
        found = {} if aside is None else dict(zip(aside[1], aside[0].read(), strict=True))
        drawn = []
        for uid, token in zip(self._order, values, strict=True):
            if uid in drawing:
                row = self._rows[uid]
                row.tokens.append(token)
                row.in_flight = in_flight
                if row.new.guide is not None:
                    with _faults_of(row):
                        row.new.guide.take(token)
                drawn.append(Drawn(uid, token, found.get(uid), row.fault))
        return drawn

    def _draft(self) -> list[Drawn]:
        """A step of the only row, with some tokens guessed where that pays.

        Each position draws with its own key, as it would alone, and a guess is right if it is what
        was drawn: so guessing changes no token, whatever the sampling.
        """
        (row,) = self._rows.values()
        if row.drafting is None:
            row.drafting = Drafting(Lookup(()), Worth(self._cost))
        alone = row.sampler.params.penalised or row.new.guide is not None
        if alone or not (count := row.drafting.worth.count()):
            return self._timed()
        seen = len(row.drafting.lookup) - len(row.context)
        for token in row.known if seen < 0 else row.tokens[seen:]:
            row.drafting.lookup.add(token)
        guess = row.drafting.lookup.guess(count)
        if not guess:
            return self._timed()
        began = time.perf_counter()
        last = row.tokens[-1] if row.tokens else row.context[-1]
        inputs = mx.array([last, *guess], mx.uint32)
        logits = self._layout.draft(inputs)
        places = range(len(guess) + 1)
        tokens = sample(
            logits, inputs, [row.sampler for _ in places], [row.position + i for i in places]
        )
        pending = None
        if row.new.top_logprobs is not None:
            pending = logprobs(logits, tokens, list(places), [row.new.top_logprobs for _ in places])
        values: list[int] = tokens.tolist()  # type: ignore[assignment]
        right = next((i for i, token in enumerate(guess) if values[i] != token), len(guess))
        self._layout.undo(len(guess) - right)
        found = pending.read() if pending is not None else [None] * len(values)
        self._next, self._aside, self._order = tokens[right : right + 1], None, [row.new.uid]
        row.tokens += values[: right + 1]
        row.drafting.worth.verified(len(guess), right)
        self._cost.took(len(guess), time.perf_counter() - began)
        return [
            Drawn(row.new.uid, token, each)
            for token, each in zip(values[: right + 1], found, strict=False)
        ]

    def _timed(self) -> list[Drawn]:
        began = time.perf_counter()
        drawn = self._decode()
        self._cost.took(0, time.perf_counter() - began)
        return drawn

    def _drawing(self) -> list[int]:
        return [uid for uid in self._order if self._rows[uid].in_flight]

    def _arrange(self) -> None:
        """Brings the next inputs into the order of the rows, which may have changed."""
        order = self._layout.order
        if order == self._order:
            return
        new = [uid for uid in order if uid not in self._order]
        firsts = mx.array([self._rows[uid].context[-1] for uid in new], mx.uint32)
        places = {uid: place for place, uid in enumerate([*self._order, *new])}
        index = mx.array([places[uid] for uid in order], mx.int32)
        self._next = mx.concatenate([self._next, firsts])[index]
        self._order = order

    def _launch(self, chunks: _Chunks) -> None:
        """Has the device compute the next token of every row, and those of the chunks."""
        inputs, rows = self._next, [self._rows[uid] for uid in self._order]
        logits, states = self._layout.decode(inputs, chunks)
        self._next = sample(
            logits,
            inputs,
            [row.sampler for row in rows],
            [row.position for row in rows],
            self._allowed(logits, rows),
        )
        self._aside = None
        asking = [i for i, row in enumerate(rows) if row.new.top_logprobs is not None]
        if asking:
            counts = [rows[i].new.top_logprobs or 0 for i in asking]
            pending = logprobs(logits, self._next, asking, counts)
            self._aside = pending, [self._order[i] for i in asking]
        for row in rows:
            row.in_flight = True
        mx.async_eval(  # type: ignore[no-untyped-call]
            self._next, *(self._aside[0].arrays if self._aside else ()), *states
        )

    def _allowed(self, logits: mx.array, rows: Sequence[Row]) -> mx.array | None:
        """What the rows may draw, [rows, vocabulary]; None: anything."""
        if all(row.new.guide is None for row in rows):
            return None
        mx.async_eval(logits)  # type: ignore[no-untyped-call]  # A device of its own computes meanwhile.
        allowed = np.ones(logits.shape, np.bool_)
        for row, line in zip(rows, allowed, strict=True):
            if row.new.guide is not None and row.fault is None:
                with _faults_of(row):
                    row.new.guide.mark(line)
        return mx.array(allowed)

    def _prefill(self, budget: int, *, decoding: bool) -> list[Prefilled]:
        chunks = self._chunks(budget)
        if chunks:
            began = time.perf_counter()
            self._layout.prefill(chunks)
            seconds = time.perf_counter() - began
            self._pace.prefilled(_count(chunks), seconds, decoding=decoding)
        return self._progress(chunks)

    def _chunks(self, budget: int) -> list[tuple[Any, list[int]]]:
        """The next tokens of the prompts in line, with their states: so many tokens in all."""
        for joining in self._line:
            if joining.state is None:
                joining.state = self._layout.begin(
                    as_tokens(joining.tokens), joining.borders, adapter=joining.adapter
                )
                joining.cached = joining.state.length
        chunks = []
        given = shares([joining.remaining for joining in self._line], budget)
        for joining, wanted in zip(self._line, given, strict=True):
            if wanted:
                done = joining.state.length
                count = self._layout.chunk(joining.state, wanted)
                chunks.append((joining.state, joining.tokens[done : done + count]))
        return chunks

    def _progress(self, chunks: _Chunks) -> list[Prefilled]:
        """What has been computed; has those decode that are ready."""
        ready = [joining for joining in self._line if not joining.remaining]
        moved = {id(state) for state, _ in chunks} | {id(joining.state) for joining in ready}
        progress = [
            Prefilled(j.uid, j.state.length, len(j.tokens), j.cached)
            for j in self._line
            if id(j.state) in moved
        ]
        if ready:
            self._join(ready)
        return progress

    def _join(self, ready: list[Joining]) -> None:
        self._line = [joining for joining in self._line if joining not in ready]
        if not self._line:
            self._begun_at = None
        elif not self._rows:
            self._begun_at = time.perf_counter()
        for joining in ready:
            with self._spare_memory():
                self._layout.remember(as_tokens(joining.tokens), joining.state)
            self._rows |= {row.new.uid: row for row in joining.rows}
        soon = [len(joining.tokens) - 1 for joining in self._line for _ in joining.rows]
        self._layout.join([(row.new.uid, j.state) for j in ready for row in j.rows], soon)


def _count(chunks: _Chunks) -> int:
    return sum(len(tokens) for _, tokens in chunks)


@contextmanager
def _faults_of(row: Row) -> Iterator[None]:
    """What goes wrong with a row's guide is that row's alone."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - told with the row's next token
        row.fault = row.fault or error
