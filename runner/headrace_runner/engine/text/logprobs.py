"""Log-probabilities of drawn tokens, for the rows that ask for them alone.

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
    logits = logits.astype(mx.float32)
    peak = distribution.peak(logits)
    total = mx.log(distribution.total(distribution.weights(logits, peak, distribution.LOG2_E)))
    own = mx.take_along_axis(logits, tokens[:, None], axis=-1) - peak - total
    arrays = [own[:, 0]]
    if any(counts):
        values, ids = distribution.top(logits, min(max(_SAME, *counts), logits.shape[-1]))
        arrays += [ids, values - peak - total]
    return PendingLogprobs(arrays, list(counts))


def _likeliest(ids: list[int], values: list[float], count: int) -> tuple[tuple[int, float], ...]:
    """The likeliest first, and of equals the lower id. A token that is ruled out is none."""
    pairs = [(i, value) for i, value in zip(ids, values, strict=True) if value > -math.inf]
    return tuple(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:count])
