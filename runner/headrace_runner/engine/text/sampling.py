"""Draws one token for every row of a batch, each row by its own rules.

The randomness of a draw depends on the row's seed and the position alone, so a
request draws the same tokens alone, in any batch, and when it is resumed. A rule
costs nothing where no row asks for it, and otherwise one set of operations for
all rows that do. This module never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx

from headrace_runner.engine.text import distribution

_MASK = (1 << 64) - 1

# What else keys are made for, beside the draw itself.
_XTC, _CHOICE = 1, 2

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


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of several choices; the first has the request's own. Below 2**63."""
    if choice == 0:
        return seed
    high, low = draw_key(seed, choice, purpose=_CHOICE)
    return (high << 31) | (low >> 1)


@dataclass(slots=True, eq=False)
class SamplerRow:
    """One row's parameters and the state that its draws depend on. Equal to itself alone."""

    params: SamplingParams
    windows: mx.array | None = None
    """Of a penalised row: [rows, width] on the device, where this row has the line `line`.

    The line ends with the row's last tokens; -1 fills an unused place.
    """
    line: int = 0

    @classmethod
    def start(cls, params: SamplingParams, context: Sequence[int]) -> SamplerRow:
        """The state of a row whose tokens so far, but for its next input, are `context`."""
        if not params.penalised:
            return cls(params)
        seen = list(context[-params.penalty_window :])
        unused = params.penalty_window - len(seen)
        return cls(params, mx.array([[-1] * unused + seen], mx.int32))


def sample(
    logits: mx.array,
    inputs: mx.array,
    rows: Sequence[SamplerRow],
    positions: Sequence[int],
    allowed: mx.array | None = None,
) -> mx.array:
    """Draws the next token of each row. Lazy: nothing is evaluated here.

    `logits` is [rows, vocabulary], `inputs` [rows] the tokens that gave them,
    `positions` the index of each drawn token in its request's output, and
    `allowed` [rows, vocabulary] what may be drawn, if not all may. Advances
    the penalty windows. Returns [rows] of uint32; a row without one finite logit
    gets some token, and the others their own.

    Several positions of one request may be drawn in one call, as when drafted
    tokens are verified: `rows` then has its row several times. Not so for a
    penalised row, whose window can follow one input only: it takes part as a
    new `SamplerRow.start` for each position, with the drafted tokens before that
    in the context, and goes on as the one whose draw was the last to hold.
    Raises ValueError for a penalised row that is there twice.
    """
    plan = _plan(tuple(rows), logits.shape[-1])
    if plan.bias is not None:
        line, ids, values = plan.bias
        logits = logits.astype(mx.float32).at[line, ids].add(values)
    if plan.penalties is not None:
        # What `astype` gives is another array to Python, so that the caller's stays as it is.
        logits = plan.penalties.apply(logits.astype(mx.float32), inputs)
    if allowed is not None:
        logits = mx.where(allowed, logits, mx.array(-mx.inf, logits.dtype))
    if not plan.hot:
        return mx.argmax(logits, axis=-1)
    drawn = _draw(
        _pick(logits, plan.hot_lines), plan, [(rows[i].params.seed, positions[i]) for i in plan.hot]
    )
    if plan.hot_lines is None:
        return drawn
    tokens = mx.argmax(logits, axis=-1)
    tokens[plan.hot_lines] = drawn
    return tokens


def _draw(logits: mx.array, plan: _Plan, moments: Sequence[tuple[int, int]]) -> mx.array:
    """Tokens for logits as they are after the penalties; `moments` are seeds and positions."""
    logits = logits.astype(mx.float32)
    weights = distribution.weights(logits, distribution.peak(logits), plan.scale)
    if plan.cuts is not None:
        weights = plan.cuts.apply(weights, moments)
    keys = mx.array([draw_key(seed, position) for seed, position in moments], mx.uint32)
    return distribution.draw(weights, keys)


def _chance(seed: int, position: int) -> float:
    """A uniform number in [0, 1) that does not share its key with the draw."""
    high, low = draw_key(seed, position, purpose=_XTC)
    return ((high << 21) | (low >> 11)) / (1 << 53)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What stays the same while the same rows are drawn; None for what none of them needs."""

    bias: tuple[mx.array, mx.array, mx.array] | None
    """Of each single bias its line in the batch, its token and its value."""
    penalties: _Penalties | None
    hot: list[int]
    """The rows that are not greedy."""
    hot_lines: mx.array | None
    """The same; None for all rows. So it is with all lines here."""
    scale: mx.array
    """[hot rows, 1]: log2(e) over the temperature."""
    cuts: _Cuts | None


# A batch draws with the same rows for hundreds of steps.
@lru_cache(maxsize=4)
def _plan(rows: tuple[SamplerRow, ...], vocabulary: int) -> _Plan:
    params = [row.params for row in rows]
    hot = [i for i, p in enumerate(params) if not p.greedy]
    scale = [distribution.LOG2_E / max(params[i].temperature, _MIN_TEMPERATURE) for i in hot]
    biases = [(i, token, value) for i, p in enumerate(params) for token, value in p.logit_bias]
    bias = None
    if biases:
        lines, tokens, values = zip(*biases, strict=True)
        bias = mx.array(lines), mx.array(tokens), mx.array(values, mx.float32)
    return _Plan(
        bias=bias,
        penalties=_Penalties.of(rows) if any(p.penalised for p in params) else None,
        hot=hot,
        hot_lines=_lines(hot, len(rows)),
        scale=_column(scale),
        cuts=_Cuts.of([params[i] for i in hot], vocabulary),
    )


@dataclass(frozen=True, slots=True)
class _Penalties:
    """The penalties of a batch's penalised rows."""

    rows: list[SamplerRow]
    lines: mx.array
    """[rows, 1]: where they are in the batch."""
    in_window: mx.array
    """[rows, width]: the places that belong to each row's window; the widest has them all."""
    repetition: mx.array
    presence: mx.array
    frequency: mx.array

    @classmethod
    def of(cls, rows: Sequence[SamplerRow]) -> _Penalties:
        lines = [i for i, row in enumerate(rows) if row.params.penalised]
        mine = [rows[i] for i in lines]
        if len(set(mine)) < len(mine):
            raise ValueError("a penalised row can be drawn once in a call")
        width = max(row.params.penalty_window for row in mine)
        return cls(
            rows=mine,
            lines=mx.array([[line] for line in lines]),
            in_window=mx.arange(width) >= width - _column([r.params.penalty_window for r in mine]),
            repetition=_column([row.params.repetition_penalty for row in mine]),
            presence=_column([row.params.presence_penalty for row in mine]),
            frequency=_column([row.params.frequency_penalty for row in mine]),
        )

    def apply(self, logits: mx.array, inputs: mx.array) -> mx.array:
        """Moves the windows on by the inputs, and changes the logits by what is in them then."""
        token = inputs[self.lines].astype(mx.int32)
        windows = mx.concatenate([self._windows()[:, 1:], token], axis=1)
        for line, row in enumerate(self.rows):
            row.windows, row.line = windows, line
        used = (windows >= 0) & self.in_window
        # In an unused place the newest token, not counted there, is penalised once more, alike.
        ids = mx.where(used, windows, token)
        counts = mx.zeros((len(self.rows), logits.shape[-1]))
        counts = counts.at[mx.arange(len(self.rows))[:, None], ids].add(used.astype(mx.float32))
        counts = mx.take_along_axis(counts, ids, axis=1)
        seen = logits[self.lines, ids]
        seen = mx.where(seen < 0, seen * self.repetition, seen / self.repetition)
        logits[self.lines, ids] = seen - self.presence - self.frequency * counts
        return logits

    def _windows(self) -> mx.array:
        """The rows' windows as one array, which they already have if all were drawn together."""
        first, shape = self.rows[0].windows, self.in_window.shape
        together = all(row.windows is first and row.line == i for i, row in enumerate(self.rows))
        if together and first is not None and first.shape == shape:
            return first
        return mx.concatenate([_widened(row, shape[1]) for row in self.rows])


def _widened(row: SamplerRow, width: int) -> mx.array:
    """A row's window as [1, width]."""
    assert row.windows is not None
    own = row.params.penalty_window
    window = row.windows[row.line : row.line + 1, -own:]
    return mx.pad(window, [(0, 0), (width - own, 0)], constant_values=mx.array(-1, mx.int32))


@dataclass(frozen=True, slots=True)
class _Cuts:
    """What is cut away of the distributions of the rows that are not greedy."""

    floor: mx.array
    """[rows, 1]: the least weight that min_p leaves; the likeliest token has 1."""
    top_k: tuple[mx.array | None, mx.array, mx.array, int] | None
    """Of the rows that have a top_k: lines, k, top_p, the largest k."""
    top_p: tuple[mx.array | None, mx.array] | None
    """Of the rows that have a top_p and no top_k: lines and top_p."""
    xtc: list[tuple[int, float, float]]
    """Lines, probabilities and thresholds."""

    @classmethod
    def of(cls, params: Sequence[SamplingParams], vocabulary: int) -> _Cuts | None:
        if not any(p.truncated for p in params):
            return None
        few = [i for i, p in enumerate(params) if 0 < p.top_k < vocabulary]
        nucleus = [i for i, p in enumerate(params) if p.top_p < 1.0 and i not in few]
        top_k = top_p = None
        if few:
            ks = [params[i].top_k for i in few]
            # Rounding must not make a top_p of 1 drop the last one.
            shares = [params[i].top_p if params[i].top_p < 1.0 else 2.0 for i in few]
            top_k = _lines(few, len(params)), _column(ks), _column(shares), max(ks)
        if nucleus:
            shares = [params[i].top_p for i in nucleus]
            top_p = _lines(nucleus, len(params)), _column(shares)
        # A token that was ruled out has the least weight, not 0.
        floor = _column([max(p.min_p, 2 * distribution.LEAST_WEIGHT) for p in params])
        xtc = [
            (i, p.xtc_probability, p.xtc_threshold)
            for i, p in enumerate(params)
            if p.xtc_probability > 0.0
        ]
        return cls(floor, top_k, top_p, xtc)

    def apply(self, weights: mx.array, moments: Sequence[tuple[int, int]]) -> mx.array:
        """The weights with 0 for what may not be drawn; `moments` are seeds and positions."""
        floor = self.floor
        if self.top_k is not None:
            lines, k, share, most = self.top_k
            found = distribution.top_k_floor(_pick(weights, lines), k, share, most)
            floor = mx.maximum(floor, found) if lines is None else floor.at[lines].maximum(found)
        if self.top_p is not None:
            lines, share = self.top_p
            found = distribution.top_p_floor(_pick(weights, lines), share)
            floor = mx.maximum(floor, found) if lines is None else floor.at[lines].maximum(found)
        weights = distribution.at_least(weights, floor)
        if now := [(i, least) for i, chance, least in self.xtc if _chance(*moments[i]) < chance]:
            lines = mx.array([i for i, _ in now])
            thresholds = _column([least for _, least in now])
            weights[lines] = distribution.without_top(weights[lines], thresholds)
        return weights


def _lines(indices: list[int], rows: int) -> mx.array | None:
    return None if len(indices) == rows else mx.array(indices)


def _pick(values: mx.array, lines: mx.array | None) -> mx.array:
    return values if lines is None else values[lines]


def _column(values: list[float] | list[int]) -> mx.array:
    return mx.array([[value] for value in values], mx.float32)
