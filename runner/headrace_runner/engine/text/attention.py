"""Attention of single rows' new tokens over the keys and values that each row has so far.

Queries are [rows, query heads, tokens, dimensions], keys and values [rows, heads, tokens,
dimensions]; query heads are a multiple of heads, as many to each in turn. A query is that of the
last tokens of its row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, TypeAlias

import mlx.core as mx

from headrace_runner.models import cpu
from headrace_runner.models.vector_math import decay

_SCORES = 300_000
"""Scores that are computed together on a CPU: what stays in a core's cache from one operation to
the next. With 6,000 keys this takes 0.7 of the time that 128 queries at once take."""
_QUERIES = (8, 64)
"""Queries in a block at least, for the matrix product, and at most: none sees keys after its own,
so that small blocks of a new prompt score less in vain."""


Keep: TypeAlias = Callable[[mx.array, mx.array, mx.array], tuple[mx.array, mx.array]]
"""What is kept of new tokens' keys and values, given the queries too."""


class Attend(Protocol):
    """`attend` below, by one of its ways."""

    def __call__(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        padding: mx.array | None = None,
        recent: mx.array | None = None,
    ) -> mx.array: ...


class Way(NamedTuple):
    """How attention is computed, and of what."""

    attend: Attend
    keep: Keep


def choose_way(*, on_cpu: bool, by_kernels: bool) -> Way:
    """The fastest. By the kernels, keys and values are kept in 16 bits, which takes half of the
    memory, and half of what a step reads. By others they are kept as they come."""
    if by_kernels:
        return Way(attend_by_kernels, _rounded)
    return Way(partial(attend, by_products=on_cpu), as_they_come)


def as_they_come(queries: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
    """The keys and values."""
    return keys, values


def _rounded(queries: mx.array, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
    if cpu.attends(queries, keys, values):
        return cpu.round_heads(keys), cpu.round_heads(values)
    return keys, values


def attend_by_kernels(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    padding: mx.array | None = None,
    recent: mx.array | None = None,
) -> mx.array:
    """The same by headrace_kernels, where these cover it: of each query by itself, so that a row's
    results are the same to the bit alone, in a batch, in a prompt and when it is resumed."""
    if cpu.attends(queries, keys, values):
        return cpu.attend(queries, keys, values, scale, padding, recent)
    return attend(queries, keys, values, scale, padding, recent, by_products=True)


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    scale: float,
    padding: mx.array | None = None,
    recent: mx.array | None = None,
    *,
    by_products: bool,
) -> mx.array:
    """Softmax of the scores, causal, times the values: the shape of `queries`, but for the last
    dimension, which is that of the values.

    `padding`, [rows, 1, 1, tokens], is added to the scores: minus infinity where a row has no key.
    `recent`, [queries, queries], is added to the scores of the queries' own tokens instead of what
    makes them causal; not together with `padding`.
    `by_products` computes it from matrix products and `decay`, which is faster on a CPU.
    """
    tokens = queries.shape[2]
    if not by_products:
        if recent is not None:
            mask = mx.pad(recent, [(0, 0), (keys.shape[2] - tokens, 0)]).astype(queries.dtype)
            return mx.fast.scaled_dot_product_attention(
                queries, keys, values, scale=scale, mask=mask
            )
        return _fused(queries, keys, values, scale, padding)
    least, most = _QUERIES
    block = min(max(_SCORES // (queries.shape[1] * keys.shape[2]), least), most)
    if tokens <= block:
        return _by_products(queries * scale, keys, values, padding, recent)
    parts = []
    before = keys.shape[2] - tokens
    for start in range(0, tokens, block):
        end = min(start + block, tokens)
        seen = slice(0, before + end)
        part = None if padding is None else padding[..., seen]
        own = None if recent is None else recent[start:end, :end]
        some = queries[:, :, start:end] * scale
        parts.append(_by_products(some, keys[:, :, seen], values[:, :, seen], part, own))
    return mx.concatenate(parts, axis=2)


def _fused(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, padding: mx.array | None
) -> mx.array:
    tokens = queries.shape[2]
    mask: mx.array | str | None = padding if padding is not None or tokens == 1 else "causal"
    if padding is not None and tokens > 1:
        mask = padding + mx.pad(_future(tokens), [(0, 0), (keys.shape[2] - tokens, 0)])
    if isinstance(mask, mx.array):
        mask = mask.astype(queries.dtype)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


def _by_products(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    padding: mx.array | None,
    own: mx.array | None,
) -> mx.array:
    rows, query_heads, tokens, size = queries.shape
    heads, length = keys.shape[1:3]
    # All queries of a head in one product, which reads its keys once.
    folded = queries.reshape(rows, heads, -1, size)
    # Sums of exponentials need more than the bits of a half-precision type.
    scores = (folded @ keys.swapaxes(-1, -2)).astype(mx.float32)
    if padding is not None:
        scores = scores + padding
    if own is None and tokens > 1:
        # Only among the last keys, those of the queries' own tokens, can one be too late.
        own = _future(tokens)
    if own is not None:
        recent = scores.reshape(rows, query_heads, tokens, length)
        first = length - own.shape[1]
        recent[..., first:] = recent[..., first:] + own
        scores = recent.reshape(scores.shape)
    weights = decay(scores.max(axis=-1, keepdims=True) - scores)
    found = (weights.astype(values.dtype) @ values) / weights.sum(axis=-1, keepdims=True)
    return found.astype(values.dtype).reshape(rows, query_heads, tokens, values.shape[-1])


def _future(tokens: int) -> mx.array:
    """[tokens, tokens]: minus infinity for the keys that come after a query, 0 for the others."""
    return mx.triu(mx.full((tokens, tokens), -math.inf), k=1)
