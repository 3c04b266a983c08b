"""Rows of one model, prefilled and decoded together: continuous batching.

A row joins after its prefill and leaves whenever it is removed; both happen
between steps. All use of mlx-lm's KV caches is here. Everything in this module
belongs to one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from headrace.errors import UnsupportedModel
from headrace_runner.engine.text.sampling import SamplerRow, SamplingParams, sample
from headrace_runner.models.architectures import unbatchable_cache


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of one drawn token and of the likeliest ones, likeliest first."""

    token: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token that a row has drawn."""

    uid: int
    token: int
    logprobs: Logprobs | None


@dataclass(frozen=True, slots=True)
class Prefilled:
    """How much of a row's prompt has been computed, in tokens."""

    uid: int
    done: int
    total: int


@dataclass(slots=True)
class _Row:
    uid: int
    prompt: list[int]
    sampler: SamplerRow
    top_logprobs: int | None
    cache: list[Any] = field(default_factory=list)
    done: int = 0
    # Tokens drawn so far, the one in flight included.
    drawn: int = 0


class TextBatch:
    """The rows of one model.

    `prefill_chunk` is how many prompt tokens are computed between two decode
    steps, over all rows that are being prefilled. With `ahead` a step is launched
    before the one before it is read, so that a device of its own never waits for
    the host; a row that has ended is then computed once more in vain. A CPU is
    device and host in one: there each token is read as soon as it is drawn.
    """

    def __init__(self, model: Any, *, prefill_chunk: int, ahead: bool) -> None:
        """Raises UnsupportedModel for a model whose cache mlx-lm cannot batch."""
        if (kind := unbatchable_cache(model)) is not None:
            raise UnsupportedModel(f"this model's cache, {kind} of mlx-lm, cannot be batched")
        self._model = model
        self._prefill_chunk = prefill_chunk
        self._ahead = ahead
        self._waiting: deque[_Row] = deque()
        self._rows: list[_Row] = []
        self._cache: list[Any] = []
        # The tokens drawn last, [rows], and what was asked for beside them.
        self._next: mx.array | None = None
        self._aside: dict[int, tuple[mx.array, ...]] = {}

    def __len__(self) -> int:
        return len(self._rows) + len(self._waiting)

    @property
    def kv_bytes(self) -> int:
        """Bytes of all KV caches."""
        caches = self._cache + [c for row in self._waiting for c in row.cache]
        return sum(int(c.nbytes) for c in caches)

    def add(
        self,
        uid: int,
        prompt: list[int],
        sampling: SamplingParams,
        top_logprobs: int | None,
    ) -> None:
        """Puts a row in line for its prefill. `prompt` has at least one token."""
        if not prompt:
            raise ValueError("a row needs at least one token")
        sampler = SamplerRow.start(sampling, prompt[:-1])
        cache = make_prompt_cache(self._model)
        self._waiting.append(_Row(uid, prompt, sampler, top_logprobs, cache))

    def remove(self, uids: Iterable[int]) -> None:
        """Takes rows out, wherever they are. Unknown ones are passed over."""
        gone = set(uids)
        self._waiting = deque(row for row in self._waiting if row.uid not in gone)
        keep = [i for i, row in enumerate(self._rows) if row.uid not in gone]
        if len(keep) == len(self._rows):
            return
        for uid in gone:
            self._aside.pop(uid, None)
        self._rows = [self._rows[i] for i in keep]
        if not keep:
            self._cache, self._next = [], None
            return
        assert self._next is not None
        index = mx.array(keep)
        self._next = self._next[index]
        for layer in self._cache:
            layer.filter(index)

    def step(self) -> tuple[list[Prefilled], list[Drawn]]:
        """Runs one chunk of prefill and one decode step of all rows."""
        prefilled = self._prefill()
        return prefilled, self._decode() if self._rows else []

    def _decode(self) -> list[Drawn]:
        # A row's first input is the end of its prompt, not something it drew.
        before = self._next, self._aside, [row.drawn > 0 for row in self._rows]
        self._launch()
        tokens, aside, drew = before
        if not self._ahead:
            tokens, aside, drew = self._next, self._aside, [True] * len(self._rows)
        assert tokens is not None
        values: list[int] = tokens.tolist()  # type: ignore[assignment]
        return [
            Drawn(row.uid, token, _read(aside.get(row.uid)))
            for row, token, has_drawn in zip(self._rows, values, drew, strict=True)
            if has_drawn
        ]

    def _launch(self) -> None:
        """Has the device compute the next token of every row."""
        inputs = self._next
        assert inputs is not None
        logits = self._model(inputs[:, None], cache=self._cache)[:, -1, :]
        positions = [row.drawn for row in self._rows]
        self._next = sample(logits, inputs, [row.sampler for row in self._rows], positions)
        self._aside = {
            row.uid: _with_logprobs(logits[i], self._next[i], row.top_logprobs)
            for i, row in enumerate(self._rows)
            if row.top_logprobs is not None
        }
        for row in self._rows:
            row.drawn += 1
        mx.async_eval(  # type: ignore[no-untyped-call]
            self._next, *(a for arrays in self._aside.values() for a in arrays)
        )

    def _prefill(self) -> list[Prefilled]:
        budget = self._prefill_chunk
        progress: list[Prefilled] = []
        ready: list[_Row] = []
        while self._waiting and budget > 0:
            row = self._waiting[0]
            # The last token is left to the decode step, which draws from it.
            chunk = row.prompt[row.done : min(row.done + budget, len(row.prompt) - 1)]
            if chunk:
                self._model(mx.array(chunk)[None], cache=row.cache)
                mx.eval([layer.state for layer in row.cache])
                row.done += len(chunk)
                budget -= len(chunk)
            if row.done == len(row.prompt) - 1:
                self._waiting.popleft()
                ready.append(row)
            progress.append(Prefilled(row.uid, row.done, len(row.prompt)))
        if progress:
            mx.clear_cache()
        if ready:
            self._join(ready)
        return progress

    def _join(self, rows: list[_Row]) -> None:
        merged = [
            type(layers[0]).merge(list(layers))
            for layers in zip(*(row.cache for row in rows), strict=True)
        ]
        first = mx.array([row.prompt[-1] for row in rows], mx.uint32)
        if self._rows:
            assert self._next is not None
            for layer, other in zip(self._cache, merged, strict=True):
                layer.extend(other)
            self._next = mx.concatenate([self._next, first])
        else:
            self._cache, self._next = merged, first
        for row in rows:
            row.cache = []
        self._rows += rows


def _with_logprobs(logits: mx.array, token: mx.array, top: int | None) -> tuple[mx.array, ...]:
    """The log-probability of `token` under `logits`, [vocabulary], and the `top` likeliest."""
    logprobs = logits.astype(mx.float32)
    logprobs = logprobs - mx.logsumexp(logprobs)
    if not top:
        return (logprobs[token],)
    likeliest = mx.argpartition(-logprobs, kth=top - 1)[:top]
    return logprobs[token], likeliest, logprobs[likeliest]


def _read(arrays: tuple[mx.array, ...] | None) -> Logprobs | None:
    if arrays is None:
        return None
    if len(arrays) == 1:
        return Logprobs(arrays[0].item(), ())  # type: ignore[arg-type]
    token, ids, values = arrays
    ids_list: list[int] = ids.tolist()  # type: ignore[assignment]
    values_list: list[float] = values.tolist()  # type: ignore[assignment]
    pairs = sorted(zip(ids_list, values_list, strict=True), key=lambda pair: -pair[1])
    return Logprobs(token.item(), tuple(pairs))  # type: ignore[arg-type]
