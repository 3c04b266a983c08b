"""How much memory a model will take: before it is loaded, and after. Pure arithmetic in bytes.

A model takes its weights, what it works with, and a margin for activations and the process itself.
A model for text works with the KV cache of the requests it serves; another with what its manifest
says that it takes beside the weights, to draw one image of its own size or to embed one batch.
"""

from dataclasses import dataclass
from typing import Protocol

from headrace.host.dtype import Dtype

MIB = 1 << 20
UNKNOWN_WEIGHTS = 8 << 30
"""Taken for a model whose manifest does not say how large its tensors are."""

_ROW_TOKENS = 512
_CONTEXTS = (2048, 8192)
_CONCURRENCIES = (1, 8, 32)
_MARGIN_SHARE = 0.1
_MARGIN_BASE = 256 * MIB


class Working(Protocol):
    """Of a model for images or embeddings."""

    @property
    def working_bytes(self) -> int: ...


class Shape(Protocol):
    """What the estimate reads of a manifest. 0 means unknown."""

    @property
    def tensor_bytes(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def layers(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def image(self) -> Working | None: ...
    @property
    def embedding(self) -> Working | None: ...


def before_load(shape: Shape, *, dtype: Dtype, concurrency: int, context: int | None) -> int:
    """Bytes to set aside for a model that is to be loaded.

    `context` is the longest context served, in tokens; None means the model's own.
    """
    return after_load(
        weight_bytes(shape, dtype), shape, dtype=dtype, concurrency=concurrency, context=context
    )


@dataclass(frozen=True)
class Estimate:
    """What a model would take, were it served so."""

    context: int
    """Tokens of the longest context."""
    concurrency: int
    """Requests that are computed together."""
    needs: int
    """Bytes."""


def table(shape: Shape, *, dtype: Dtype) -> tuple[Estimate, ...]:
    """What `before_load` gives for some contexts, the model's own the last of them, and some
    concurrencies. Empty for a model that is not for text."""
    if shape.image or shape.embedding:
        return ()
    longest = shape.context_length
    contexts = [context for context in _CONTEXTS if not longest or context < longest]
    return tuple(
        Estimate(
            context,
            concurrency,
            before_load(shape, dtype=dtype, concurrency=concurrency, context=context),
        )
        for context in [*contexts, *([longest] if longest else [])]
        for concurrency in _CONCURRENCIES
    )


def after_load(
    weights: int, shape: Shape, *, dtype: Dtype, concurrency: int, context: int | None
) -> int:
    """The same, with the bytes of the weights as the runner reports them."""
    if (other := shape.image or shape.embedding) is not None:
        return weights + other.working_bytes + margin(weights)
    return weights + kv_bytes(shape, dtype, concurrency, context) + margin(weights)


def weight_bytes(shape: Shape, dtype: Dtype) -> int:
    """Bytes of the weights in memory."""
    if dtype == "float32" and shape.parameters:
        return 4 * shape.parameters
    return shape.tensor_bytes or UNKNOWN_WEIGHTS


def kv_bytes(shape: Shape, dtype: Dtype, concurrency: int, context: int | None) -> int:
    """Bytes of the KV cache.

    A cache grows with what a request really uses, and few requests fill the context. So there is
    room for whichever is more: one request of the whole context, or every request of the batch at
    512 tokens. `context` counts only as far as the model goes, as it does in the runner.
    """
    longest = shape.context_length
    tokens = min(context or longest, longest or context or 0)
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * (2 if dtype == "stored" else 4)
    return per_token * max(tokens, concurrency * min(tokens, _ROW_TOKENS))


def margin(weights: int) -> int:
    """Bytes for activations, buffers kept for reuse, and the process."""
    return int(weights * _MARGIN_SHARE) + _MARGIN_BASE
