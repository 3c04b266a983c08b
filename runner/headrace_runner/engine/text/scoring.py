"""Scores continuations of prompts: how likely the model holds what is given.

A prompt is computed once, in chunks, and its continuations are branches behind it: several of them
go through the model in one pass, each seeing the prompt and itself. Of each the last token need not
be computed, and the first is told by the prompt; so what is one token long costs nothing more. One
that is too long for a pass is put behind the prompt piece by piece, and taken back. Belongs to the
engine's thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from headrace_runner.engine.text.layout import Layout, Piece, as_tokens
from headrace_runner.engine.text.logprobs import Logprobs, scores
from headrace_runner.engine.text.request import Score, Scored, ScoringRequest
from headrace_runner.models.device import is_allocation_failure

_LOGITS_BYTES = 64 << 20
"""Of the logits of one pass, in float32: about four arrays of this size are there at once."""


@dataclass(slots=True, eq=False)
class Scoring:
    """A request on the engine's thread."""

    uid: int
    request: ScoringRequest
    borders: Sequence[int] = ()
    """Places in the prompt at which others are likely to differ."""
    state: Any = None
    cached: int = 0
    next: int = 0
    """The continuation to be computed."""
    done: int = 0
    """How much of it is behind the prompt, where it goes there piece by piece."""
    fork: Any = None
    """Where the layout was before that."""
    logprobs: list[list[Logprobs]] = field(init=False)
    greedy: list[list[bool]] = field(init=False)
    started_at: int = 0
    prefilled_at: int = 0
    passes: int = 0

    def __post_init__(self) -> None:
        self.logprobs = [[] for _ in self.request.continuations]
        self.greedy = [[] for _ in self.request.continuations]

    @property
    def prefilled(self) -> bool:
        """Whether the prompt is computed."""
        return self.state is not None and self.state.length >= len(self.request.prompt)

    @property
    def over(self) -> bool:
        """Whether all is known."""
        return self.prefilled and self.next == len(self.request.continuations)

    def result(self, at: int) -> Scored:
        """What was asked for."""
        skipped = self.request.skipped or [0] * len(self.logprobs)
        found = tuple(
            Score(tuple(logprobs[skip:]), all(greedy[skip:]))
            for logprobs, greedy, skip in zip(self.logprobs, self.greedy, skipped, strict=True)
        )
        return Scored(found, self.started_at, self.prefilled_at, at, self.passes)

    def begin_anew(self) -> None:
        """Has it computed from the beginning: what was computed for it is lost."""
        self.state, self.fork, self.next, self.done = None, None, 0, 0
        self.__post_init__()


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be read off one pass for one scoring."""

    scoring: Scoring
    piece: Piece[Any]
    targets: list[tuple[int, int]]
    """Of each token, in the order of their continuations: which of the piece's wanted logits are
    those before it, and of which continuation it is."""
    tokens: list[int]
    ends_part: bool = False
    """Whether a continuation ends with it that went behind the prompt piece by piece."""


class Scorer:
    """All scorings that have been admitted, in turns."""

    def __init__(self, layout: Layout[Any], *, most: int, vocabulary: int) -> None:
        """`most`: tokens in a pass."""
        self._layout = layout
        self._most = most
        self._most_logits = max(1, _LOGITS_BYTES // (4 * vocabulary))
        self._turns: list[Scoring] = []
        """The next one first."""

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(int(each.state.nbytes) for each in self._turns if each.state is not None)

    def row_bytes(self, request: ScoringRequest) -> int:
        """Bytes that a request takes at its longest: what is behind a prompt may be a copy of it,
        and so may what is remembered of it."""
        return 2 * self._layout.row_bytes(len(request.prompt) + self._beyond(request))

    def add(self, scoring: Scoring) -> None:
        """Takes one up."""
        self._turns.append(scoring)

    def drop(self, uids: set[int]) -> None:
        """Forgets some. What is computed of their prompts is remembered."""
        for scoring in self._turns:
            if scoring.uid in uids and scoring.state is not None and not scoring.prefilled:
                self._remember(scoring)
        self._turns = [scoring for scoring in self._turns if scoring.uid not in uids]

    def shed(self) -> Scoring:
        """After an allocation failed: gives up the newest, and begins all others anew."""
        newest = max(self._turns, key=lambda scoring: scoring.uid)
        self._turns.remove(newest)
        for scoring in self._turns:
            scoring.begin_anew()
        self._layout.forget()
        mx.clear_cache()
        return newest

    def step(self, budget: int) -> tuple[int, list[Scoring]]:
        """Computes so many tokens at most, one at least. Gives how many, and who had a part."""
        began = time.perf_counter_ns()
        asked, tokens, logits = list[_Asked](), 0, 0
        left = max(1, min(budget, self._most))
        for scoring in self._turns:
            if tokens == left or logits == self._most_logits:
                break
            one = self._ask(scoring, left - tokens, self._most_logits - logits, alone=not asked)
            if one is not None:
                asked.append(one)
                tokens += len(one.piece.trunk) + sum(map(len, one.piece.branches))
                logits += one.piece.wanted
        self._compute(asked)
        now = time.perf_counter_ns()
        for one in asked:
            self._took_part(one.scoring, began, now)
        had = {id(one.scoring) for one in asked}
        self._turns.sort(key=lambda scoring: id(scoring) in had)  # They go to the end, in order.
        return tokens, [one.scoring for one in asked]

    def _took_part(self, scoring: Scoring, began: int, now: int) -> None:
        scoring.passes += 1
        scoring.started_at = scoring.started_at or began
        if scoring.prefilled and not scoring.prefilled_at:
            scoring.prefilled_at = now
            self._remember(scoring)

    def _remember(self, scoring: Scoring) -> None:
        try:
            self._layout.remember(as_tokens(scoring.request.prompt), scoring.state)
        except Exception as error:
            if not is_allocation_failure(error):
                raise
            self._layout.forget()

    def _ask(self, scoring: Scoring, left: int, logits: int, *, alone: bool) -> _Asked | None:
        """What a pass computes for one, of `left` tokens and with so many logits at most. None
        where that is too little, which it never is `alone`."""
        if scoring.state is None:
            self._begin(scoring)
        prompt, continuations = scoring.request.prompt, scoring.request.continuations
        trunk: Sequence[int] = ()
        targets, tokens = list[tuple[int, int]](), list[int]()
        wanted = 0
        if not scoring.prefilled:
            if (missing := len(prompt) - scoring.state.length) > left:
                place = scoring.state.length
                return _Asked(scoring, Piece(scoring.state, prompt[place : place + left]), [], [])
            trunk, wanted, left = prompt[scoring.state.length :], 1, left - missing
            targets = [(0, number) for number in range(len(continuations))]
            tokens = [continuation[0] for continuation in continuations]
        branches = list[Sequence[int]]()
        while not scoring.done and scoring.next < len(continuations):
            given = continuations[scoring.next]
            if (length := len(given) - 1) > min(left, logits - wanted):
                break
            branches.append(given[:-1])
            targets += [(wanted + place, scoring.next) for place in range(length)]
            tokens += given[1:]
            wanted, left = wanted + length, left - length
            scoring.next += 1
        branches = [branch for branch in branches if branch]
        if trunk or branches or scoring.next == len(continuations):
            return _Asked(scoring, Piece(scoring.state, trunk, branches, wanted), targets, tokens)
        return self._ask_part(scoring, min(left, logits)) if alone else None

    def _ask_part(self, scoring: Scoring, left: int) -> _Asked:
        """A piece of a continuation that is too long for a pass."""
        number, given = scoring.next, scoring.request.continuations[scoring.next]
        if not scoring.done:
            scoring.fork = self._layout.mark(scoring.state)
        start = scoring.done
        end = scoring.done = min(start + left, len(given) - 1)
        ends = end == len(given) - 1
        scoring.next += ends
        targets = [(place, number) for place in range(end - start)]
        piece = Piece(scoring.state, given[start:end], (), end - start)
        return _Asked(scoring, piece, targets, list(given[start + 1 : end + 1]), ends)

    def _begin(self, scoring: Scoring) -> None:
        request = scoring.request
        beyond = self._beyond(request)
        prompt = as_tokens(request.prompt)
        adapter = None if request.adapter is None else request.adapter.key
        scoring.state = self._layout.begin(prompt, scoring.borders, beyond, adapter)
        scoring.cached = scoring.state.length

    def _beyond(self, request: ScoringRequest) -> int:
        """Tokens that are in a row at once, the prompt's last among them."""
        lengths = [len(continuation) - 1 for continuation in request.continuations]
        return 1 + max(*lengths, min(sum(lengths), self._most))

    def _compute(self, asked: Sequence[_Asked]) -> None:
        pieces = [one.piece for one in asked if one.piece.trunk or one.piece.branches]
        if not pieces:
            return
        logits, states = self._layout.score(pieces)
        first, lines, tokens = 0, list[int](), list[int]()
        for one in asked:
            lines += [first + line for line, _ in one.targets]
            tokens += one.tokens
            first += one.piece.wanted
        if not tokens:
            mx.eval(states)
            return
        count = max(one.scoring.request.top_logprobs for one in asked)
        pending = scores(logits, lines, tokens, count)
        mx.eval(pending.arrays, states)
        own, best, top = pending.read()
        found = zip(lines, tokens, own, strict=True)
        for one in asked:
            wanted = one.scoring.request.top_logprobs
            for _, number in one.targets:
                line, token, value = next(found)
                one.scoring.logprobs[number].append(Logprobs(value, top[line][:wanted]))
                one.scoring.greedy[number].append(best[line] == token)
            if one.ends_part:
                self._layout.back(one.scoring.state, one.scoring.fork)
                one.scoring.done, one.scoring.fork = 0, None
