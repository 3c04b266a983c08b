"""Arithmetic on whole distributions, [rows, vocabulary], for sampling and log-probabilities.

Every row's result depends on that row alone, to the last bit on a CPU: sums are
taken within a row, in an order that the number of rows does not change. Nothing
waits for the device, and on a CPU nothing sorts a whole vocabulary.
"""

from __future__ import annotations

import math

import mlx.core as mx

from headrace_runner.models import cpu

LOG2_E = math.log2(math.e)

_BLOCK = 64
"""Neighbouring ids that are looked at together before each by itself."""

_SHORT = 1024
"""What the search for a nucleus leaves of a row is sorted when it is as short as this."""

LEAST_WEIGHT = 2.0**-126
"""The smallest normal float32: below it the power function is far slower, and nothing is drawn."""


def peak(logits: mx.array) -> mx.array:
    """The largest of each row, [rows, 1]."""
    return _blocks(logits, -math.inf).max(axis=-1).max(axis=-1, keepdims=True)


def weights(logits: mx.array, largest: mx.array, scale: mx.array | float) -> mx.array:
    """Unnormalised probabilities, 1 for the likeliest; never under LEAST_WEIGHT.

    2 to the power of the finite logits' distance to `largest`, their `peak`, [rows, 1],
    times `scale`, [rows, 1]: log2(e) over the temperature. MLX's `power` takes a third of
    the time of its `exp` on a CPU, and headrace_kernels, which find the peak themselves,
    a fraction of that.
    """
    if cpu.weighs(logits):
        return cpu.weigh(logits, mx.broadcast_to(mx.array(scale), largest.shape))
    exponent = mx.maximum((logits - largest) * scale, math.log2(LEAST_WEIGHT))
    return mx.power(2.0, exponent)


def total(values: mx.array) -> mx.array:
    """The sum of each row, [rows, 1]. Summing in two stages keeps what small values add."""
    return _blocks(values, 0.0).sum(axis=-1).sum(axis=-1, keepdims=True)


def top(values: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The `count` largest of each row, largest first, and their ids: [rows, count] each.

    They are within the `count` blocks of the largest maxima, so that only those
    blocks are searched. An id past the vocabulary can have the value -inf.
    """
    blocks = _blocks(values, -math.inf)
    rows, number, size = blocks.shape
    ids = mx.arange(number * size).reshape(1, number, size)
    if 2 * count < number:
        which = mx.argpartition(blocks.max(axis=-1), kth=-count, axis=-1)[:, -count:, None]
        blocks = mx.take_along_axis(blocks, which, axis=1)
        ids = which * size + mx.arange(size)
    values, ids = blocks.reshape(rows, -1), mx.broadcast_to(ids, blocks.shape).reshape(rows, -1)
    largest = mx.argpartition(values, kth=-count, axis=-1)[:, -count:]
    values = mx.take_along_axis(values, largest, axis=-1)
    order = mx.argsort(-values, axis=-1)
    ids = mx.take_along_axis(ids, mx.take_along_axis(largest, order, axis=-1), axis=-1)
    return mx.take_along_axis(values, order, axis=-1), ids


def top_k_floor(weights: mx.array, k: mx.array, share: mx.array, most: int) -> mx.array:
    """The least weight among the `k` largest that together reach `share` of those k, [rows, 1].

    `k` and `share` are [rows, 1], `most` the largest k. A share over 1 keeps all k.
    """
    ordered, _ = top(weights, most)
    within = mx.arange(most) < k
    sums = mx.cumsum(mx.where(within, ordered, 0.0), axis=-1)
    # The end of the running sum, unlike a sum, does not depend on `most`.
    budget = share * sums[:, -1:]
    return _last(ordered, within & (sums - ordered < budget))


def top_p_floor(weights: mx.array, share: mx.array) -> mx.array:
    """The least weight among the largest that together reach `share` of their row, [rows, 1].

    Quickselect by mass with the median as pivot: parts a row in halves, goes on
    with the half in which the running sum from the top reaches the share, and
    sorts the short rest.
    """
    rows, vocabulary = weights.shape
    whole = total(weights)
    budget = share * whole
    # Weights under this are outside, whatever their number: twice their sum fits in what the
    # nucleus leaves out. As zeros they make the partition of a peaked distribution cheap.
    values = at_least(weights, (whole - budget) / (2 * vocabulary))
    halvings = _halvings(vocabulary)
    values = _padded(values, 1 << halvings, 0.0)
    above = mx.zeros_like(budget)
    each = mx.arange(rows)
    for _ in range(halvings):
        half = values.shape[-1] // 2
        halves = mx.partition(values, half, axis=-1).reshape(rows, 2, half)
        reached = above + total(halves[:, 1])
        upper = reached >= budget
        values = halves[each, upper[:, 0].astype(mx.uint32)]
        above = mx.where(upper, above, reached)
    ordered = mx.sort(values, axis=-1)[:, ::-1]
    before = above + mx.cumsum(ordered, axis=-1, inclusive=False)
    return _last(ordered, before < budget)


def _halvings(length: int) -> int:
    """How often to halve a row before it is sorted; not at all where MLX halves it by sorting."""
    if mx.default_device() == mx.gpu:
        return 0
    return max(0, math.ceil(math.log2(length / _SHORT)))


def _last(ordered: mx.array, kept: mx.array) -> mx.array:
    """Of each row the last that is kept, [rows, 1]."""
    # The likeliest token stays, whatever rounding does to a tiny share.
    return mx.take_along_axis(ordered, mx.maximum(kept.sum(axis=-1, keepdims=True), 1) - 1, axis=-1)


def without_top(weights: mx.array, threshold: mx.array) -> mx.array:
    """The weights with 0 for all over `threshold`, a probability, but the least of those."""
    above = weights > threshold * total(weights)
    least = mx.where(above, weights, math.inf).min(axis=-1, keepdims=True)
    return mx.where(above & (weights > least), 0.0, weights)


def at_least(weights: mx.array, floor: mx.array) -> mx.array:
    """The weights with 0 for those under the floor, [rows, 1]."""
    # MLX's `where` takes several times as long as a product if its condition changes often.
    return weights * (weights >= floor)


def draw(weights: mx.array, keys: mx.array) -> mx.array:
    """One id of each row, [rows] of uint32, with probabilities in proportion to the weights.

    `keys` is [rows, 2] of uint32. The Gumbel-max method twice: for a block by its
    sum, and within that block. Noise for every id would cost more than all the
    rest. Against the inverse of the running sum the method has this: a change in
    the logits' last digits changes a draw about as seldom as is possible, so that
    rounding that differs from batch to batch hardly ever shows, and a draft
    model with the same keys draws the same tokens as often as it can.
    """
    blocks = _blocks(weights, 0.0)
    number, size = blocks.shape[1:]
    noise = mx.vmap(lambda key: mx.random.gumbel((number + size,), key=key))(keys)
    scores = mx.log(blocks.sum(axis=-1)) + noise[:, :number]
    which = mx.argmax(scores, axis=-1, keepdims=True)
    inside = mx.take_along_axis(blocks, which[:, :, None], axis=1)[:, 0]
    within = mx.argmax(mx.log(inside) + noise[:, number:], axis=-1)
    return which[:, 0] * size + within


def _blocks(values: mx.array, fill: float) -> mx.array:
    """[rows, blocks, ids of a block]."""
    return _padded(values, _BLOCK, fill).reshape(values.shape[0], -1, _BLOCK)


def _padded(values: mx.array, multiple: int, fill: float) -> mx.array:
    """The rows, lengthened to a multiple."""
    if lacking := -values.shape[-1] % multiple:
        return mx.pad(values, [(0, 0), (0, lacking)], constant_values=fill)
    return values
