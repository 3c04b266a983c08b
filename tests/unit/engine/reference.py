"""The rules of the contract for a draw, in plain numpy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from headrace_runner.engine.text.sampling import SamplingParams, draw_key

Array = npt.NDArray[np.float64]


def adjusted(logits: Array, params: SamplingParams, seen: Sequence[int]) -> Array:
    """Bias and penalties, in the contract's order."""
    logits = logits.copy()
    for token, value in params.logit_bias:
        logits[token] += value
    if params.penalised:
        for token, count in Counter(seen[-params.penalty_window :]).items():
            penalty = params.repetition_penalty
            logits[token] *= penalty if logits[token] < 0 else 1 / penalty
            logits[token] -= params.presence_penalty + params.frequency_penalty * count
    return logits


def truncated(logits: Array, params: SamplingParams, xtc: bool) -> Array:
    """Temperature and the cuts, in the contract's order; -inf is cut away."""
    logits = logits / params.temperature
    if 0 < params.top_k < len(logits):
        logits[np.argsort(-logits)[params.top_k :]] = -math.inf
    if params.top_p < 1:
        order = np.argsort(-logits)
        sums = np.cumsum(softmax(logits)[order])
        kept = max(1, int(np.sum(sums < params.top_p)) + 1)
        logits[order[kept:]] = -math.inf
    if params.min_p > 0:
        probabilities = softmax(logits)
        logits[probabilities < params.min_p * probabilities.max()] = -math.inf
    if xtc:
        probabilities = softmax(logits)
        top = [i for i in np.argsort(-probabilities) if probabilities[i] > params.xtc_threshold]
        logits[top[:-1]] = -math.inf
    return logits


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max())
    result: Array = weights / weights.sum()
    return result


def applies_xtc(params: SamplingParams, position: int) -> bool:
    high, low = draw_key(params.seed, position, purpose=1)
    return (high * 2**32 + low) / 2**64 < params.xtc_probability


def expected(logits: Array, params: SamplingParams, seen: Sequence[int], position: int) -> int:
    logits = adjusted(logits, params, seen)
    if params.temperature == 0:
        return int(np.argmax(logits))
    logits = truncated(logits, params, applies_xtc(params, position))
    return drawn(softmax(logits), draw_key(params.seed, position))


def drawn(probabilities: Array, key: tuple[int, int]) -> int:
    """The Gumbel-max method for a block of 64 neighbours, and then within it."""
    blocks = np.pad(probabilities, (0, -len(probabilities) % 64)).reshape(-1, 64)
    noise = np.array(mx.random.gumbel((len(blocks) + 64,), key=mx.array(key, mx.uint32)))
    with np.errstate(divide="ignore"):
        block = np.argmax(np.log(blocks.sum(axis=1)) + noise[: len(blocks)])
        return int(block * 64 + np.argmax(np.log(blocks[block]) + noise[len(blocks) :]))
