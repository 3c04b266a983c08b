"""Log-probabilities of drawn tokens, for the rows that ask for them alone, and of given ones.

They are those of the model's own distribution, and are never waited for here but
in `read`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from headrace_runner.engine.text import distribution

_SAME = 20
"""So many alternatives are found at least, so that a row's do not depend on what others want."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of one drawn token and of the likeliest ones, likeliest first."""

    token: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class PendingLogprobs:
    """Log-probabilities that the device computes."""

    arrays: list[mx.array]
    """What has to be evaluated: the tokens' own, [asking rows]; then the alternatives' ids and
    their log-probabilities, [asking rows, n], if any row wants some."""
    counts: list[int]
    """How many alternatives each row wants."""

    def read(self) -> list[Logprobs]:
        """The values, in the order of the rows that ask. Waits for the device."""
        own: list[float] = self.arrays[0].tolist()  # type: ignore[assignment]
        if len(self.arrays) == 1:
            return [Logprobs(value, ()) for value in own]
        ids: list[list[int]] = self.arrays[1].tolist()  # type: ignore[assignment]
        values: list[list[float]] = self.arrays[2].tolist()  # type: ignore[assignment]
        lines = zip(own, ids, values, self.counts, strict=True)
        return [Logprobs(value, _likeliest(i, v, count)) for value, i, v, count in lines]


def logprobs(
    logits: mx.array, tokens: mx.array, lines: Sequence[int], counts: Sequence[int]
) -> PendingLogprobs:
    """Log-probabilities of `tokens`, [rows], under `logits`, [rows, vocabulary]. Lazy.

    `lines` are the rows that ask, one at least, and `counts` how many of the
    likeliest tokens each of them wants beside its own.
    """
    if len(lines) < logits.shape[0]:
        asking = mx.array(list(lines))
        logits, tokens = logits[asking], tokens[asking]
    logits, peak, total = _normalised(logits)
    own = mx.take_along_axis(logits, tokens[:, None], axis=-1) - peak - total
    arrays = [own[:, 0]]
    if any(counts):
        values, ids = distribution.top(logits, min(max(_SAME, *counts), logits.shape[-1]))
        arrays += [ids, values - peak - total]
    return PendingLogprobs(arrays, list(counts))


@dataclass(frozen=True, slots=True)
class PendingScores:
    """Log-probabilities of given tokens that the device computes."""

    arrays: list[mx.array]
    """What has to be evaluated: the tokens' own, [tokens]; the likeliest of each line, [lines];
    then the likeliest ones' ids and their log-probabilities, [lines, n], if any are wanted."""

    def read(self) -> tuple[list[float], list[int], list[tuple[tuple[int, float], ...]]]:
        """The tokens' own in their order, then of each line the likeliest, and the likeliest ones
        with their log-probabilities; empty where none are wanted. Waits for the device."""
        own: list[float] = self.arrays[0].tolist()  # type: ignore[assignment]
        best: list[int] = self.arrays[1].tolist()  # type: ignore[assignment]
        if len(self.arrays) == 2:
            return own, best, [()] * len(best)
        ids: list[list[int]] = self.arrays[2].tolist()  # type: ignore[assignment]
        values: list[list[float]] = self.arrays[3].tolist()  # type: ignore[assignment]
        pairs = zip(ids, values, strict=True)
        return own, best, [_likeliest(i, v, len(i)) for i, v in pairs]


def scores(
    logits: mx.array, lines: Sequence[int], tokens: Sequence[int], count: int
) -> PendingScores:
    """Log-probabilities of `tokens`, each under one of the `lines` of `logits`, [lines,
    vocabulary], and of `count` likeliest of each line at least, if that is not 0. Lazy."""
    logits, peak, total = _normalised(logits)
    at, given = mx.array(list(lines), mx.int32), mx.array(list(tokens), mx.uint32)
    own = logits[at, given] - peak[at, 0] - total[at, 0]
    # As temperature 0 draws.
    arrays = [own, mx.argmax(logits, axis=-1)]
    if count:
        values, ids = distribution.top(logits, min(max(_SAME, count), logits.shape[-1]))
        arrays += [ids, values - peak - total]
    return PendingScores(arrays)


def _normalised(logits: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """The logits in float32, and what to take off of them: each line's peak, and the logarithm of
    the sum above it, [lines, 1] each."""
    logits = logits.astype(mx.float32)
    peak = distribution.peak(logits)
    total = mx.log(distribution.total(distribution.weights(logits, peak, distribution.LOG2_E)))
    return logits, peak, total


def _likeliest(ids: list[int], values: list[float], count: int) -> tuple[tuple[int, float], ...]:
    """The likeliest first, and of equals the lower id. A token that is ruled out is none."""
    pairs = [(i, value) for i, value in zip(ids, values, strict=True) if value > -math.inf]
    return tuple(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:count])
