"""Draws one token for every row of a batch, each row by its own rules.

The randomness of a draw depends on the row's seed and the position alone, so a
request draws the same tokens alone, in any batch, and when it is resumed. This
module never waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import mlx.core as mx

_MASK = (1 << 64) - 1

_MIN_TEMPERATURE = 1e-30
"""Logits divided by less overflow; with this already the likeliest token alone is drawn."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request draws its tokens. The values are those of the contract."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def truncated(self) -> bool:
        """Whether part of the distribution is cut away before the draw."""
        return self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0 or self.xtc_probability > 0.0


def draw_key(seed: int, position: int, purpose: int = 0) -> tuple[int, int]:
    """The 64-bit random key of a draw, as two 32-bit words.

    SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
    generators, 2014) over seed, position and purpose.
    """
    x = seed
    for word in (position, purpose):
        x = (x + 0x9E3779B97F4A7C15 * (word + 1)) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
    return x >> 32, x & 0xFFFFFFFF


@dataclass(slots=True)
class SamplerRow:
    """One row's parameters and the state that its draws depend on."""

    params: SamplingParams
    # The last `penalty_window` tokens, on the device; -1 fills an unused place.
    window: mx.array | None = None
    bias: tuple[mx.array, mx.array] | None = field(default=None)

    @classmethod
    def start(cls, params: SamplingParams, context: Sequence[int]) -> SamplerRow:
        """The state of a row whose tokens so far, but for its next input, are `context`."""
        row = cls(params)
        if params.penalised:
            seen = list(context[-params.penalty_window :])
            row.window = mx.array([-1] * (params.penalty_window - len(seen)) + seen, mx.int32)
        if params.logit_bias:
            ids, values = zip(*params.logit_bias, strict=True)
            row.bias = mx.array(ids, mx.int32), mx.array(values, mx.float32)
        return row


def sample(
    logits: mx.array, inputs: mx.array, rows: Sequence[SamplerRow], positions: Sequence[int]
) -> mx.array:
    """Draws the next token of each row. Lazy: nothing is evaluated here.

    `logits` is [rows, vocabulary], `inputs` [rows] the tokens that gave them,
    `positions` the index of each drawn token in its request's output. Advances
    the penalty windows. Returns [rows] of uint32.
    """
    logits = _adjusted(logits, inputs, rows)
    greedy = [row.params.greedy for row in rows]
    if all(greedy):
        return mx.argmax(logits, axis=-1)
    hot = [i for i, is_greedy in enumerate(greedy) if not is_greedy]
    everything = len(hot) == len(rows)
    drawn = _draw(
        logits if everything else logits[mx.array(hot)],
        [rows[i].params for i in hot],
        [positions[i] for i in hot],
    )
    if everything:
        return drawn
    tokens = mx.argmax(logits, axis=-1)
    tokens[mx.array(hot)] = drawn
    return tokens


def _adjusted(logits: mx.array, inputs: mx.array, rows: Sequence[SamplerRow]) -> mx.array:
    """Logits with each row's bias and penalties, in float32 where any apply."""
    touched = [i for i, row in enumerate(rows) if row.bias is not None or row.window is not None]
    if not touched:
        return logits
    parts = [logits[i : i + 1] for i in range(len(rows))]
    for i in touched:
        parts[i] = _adjusted_row(parts[i].astype(mx.float32), inputs[i : i + 1], rows[i])
    return mx.concatenate(parts, axis=0)


def _adjusted_row(logits: mx.array, token: mx.array, row: SamplerRow) -> mx.array:
    params = row.params
    if row.bias is not None:
        ids, values = row.bias
        logits = logits.at[:, ids].add(values)
    if row.window is None:
        return logits
    row.window = mx.concatenate([row.window[1:], token.astype(mx.int32)])
    vocabulary = logits.shape[-1]
    # The unused places of the window count for one id past the vocabulary.
    ids = mx.where(row.window < 0, vocabulary, row.window)
    counts = mx.zeros((vocabulary + 1,), mx.float32).at[ids].add(1.0)[None, :vocabulary]
    seen = counts > 0
    if params.repetition_penalty != 1.0:
        scaled = mx.where(
            logits < 0, logits * params.repetition_penalty, logits / params.repetition_penalty
        )
        logits = mx.where(seen, scaled, logits)
    return logits - params.presence_penalty * seen - params.frequency_penalty * counts


def _draw(logits: mx.array, params: Sequence[SamplingParams], positions: Sequence[int]) -> mx.array:
    temperatures = [max(p.temperature, _MIN_TEMPERATURE) for p in params]
    logits = logits.astype(mx.float32) / mx.array(temperatures, mx.float32)[:, None]
    if any(p.truncated for p in params):
        parts = [logits[i : i + 1] for i in range(len(params))]
        for i, (p, position) in enumerate(zip(params, positions, strict=True)):
            if p.truncated:
                parts[i] = _truncated(parts[i], p, position)
        logits = mx.concatenate(parts, axis=0)
    keys = mx.array(
        [draw_key(p.seed, at) for p, at in zip(params, positions, strict=True)], mx.uint32
    )
    return mx.vmap(lambda row, key: mx.random.categorical(row, key=key))(logits, keys)


def _truncated(logits: mx.array, params: SamplingParams, position: int) -> mx.array:
    """One row's logits, [1, vocabulary], with -inf for what may not be drawn."""
    nothing = mx.array(-math.inf, mx.float32)
    if 0 < params.top_k < logits.shape[-1]:
        kth = mx.min(mx.topk(logits, params.top_k, axis=-1), axis=-1, keepdims=True)
        logits = mx.where(logits < kth, nothing, logits)
    if params.top_p < 1.0:
        ordered = -mx.sort(-logits, axis=-1)
        probabilities = mx.softmax(ordered, axis=-1, precise=True)
        before = mx.cumsum(probabilities, axis=-1) - probabilities
        # The likeliest token stays, whatever rounding does to the first sum.
        kept = mx.maximum((before < params.top_p).sum(axis=-1, keepdims=True), 1)
        threshold = mx.take_along_axis(ordered, kept - 1, axis=-1)
        logits = mx.where(logits < threshold, nothing, logits)
    if params.min_p > 0.0:
        floor = mx.max(logits, axis=-1, keepdims=True) + math.log(params.min_p)
        logits = mx.where(logits < floor, nothing, logits)
    if params.xtc_probability > 0.0 and _chance(params.seed, position) < params.xtc_probability:
        probabilities = mx.softmax(logits, axis=-1, precise=True)
        top = probabilities > params.xtc_threshold
        least = mx.min(mx.where(top, probabilities, math.inf), axis=-1, keepdims=True)
        logits = mx.where(top & (probabilities > least), nothing, logits)
    return logits


def _chance(seed: int, position: int) -> float:
    """A uniform number in [0, 1) that does not share its key with the draw."""
    high, low = draw_key(seed, position, purpose=1)
    return ((high << 21) | (low >> 11)) / (1 << 53)
