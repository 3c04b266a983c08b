"""Puts Headrace's own ways of computing into a model of mlx-lm.

mlx-lm's model files import what they share by name, so a model is given another way by putting it
under that name in the files that its parts come from. Nothing else in the process is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.nn.layers.base import Module
from mlx.nn.layers.positional_encoding import RoPE
from mlx_lm.models import activations, base

from headrace_runner.models import cpu, vector_math


def route_attention(model: Any) -> None:
    """Lets the caches that can attend do so, instead of giving keys and values out.

    A cache with a method `attend(queries, keys, values, scale, sinks)` gets what it would have
    returned from `update_and_fetch`, and answers in the shape of `queries`.
    """
    _put(model, "scaled_dot_product_attention", base.scaled_dot_product_attention, _attention)


class Head:
    """Where a model computes its logits: for all of its inputs, if it is not told otherwise."""

    def __init__(self) -> None:
        self.used = False
        """Whether the model has asked it yet: there may be a head of another name."""
        self._wanted: slice | mx.array | None = None
        self._seen: list[mx.array] | None = None

    @contextmanager
    def watched(self) -> Iterator[list[mx.array]]:
        """Meanwhile gathers what comes to the head, each [tokens, 1, size]."""
        self._seen = []
        try:
            yield self._seen
        finally:
            self._seen = None

    @contextmanager
    def only(self, wanted: slice | mx.array) -> Iterator[None]:
        """Meanwhile the model computes logits for some of its inputs alone, of [tokens, 1, size].
        An array has their places."""
        self._wanted = wanted
        try:
            yield
        finally:
            self._wanted = None

    def inputs(self, x: mx.array) -> mx.array:
        """What of the inputs the logits are wanted for."""
        self.used = True
        if self._seen is not None:
            self._seen.append(x)
        return x if self._wanted is None else x[self._wanted]


def trim_head(model: Any) -> Head:
    """Gives hold of a model's head, in place of whoever had it before.

    Found are heads under mlx-lm's name for them, and embeddings that are used as one. A model whose
    head is another computes all logits: who asks has to cut off what is too much.
    """
    head = Head()
    for module in list(model.modules()):
        for name, child in module.children().items():
            if name == "lm_head":
                module[name] = _Trimmed(getattr(child, "inner", child), head)
            elif hasattr(child, "as_linear"):
                child.as_linear = _after(head, partial(type(child).as_linear, child))
    return head


def vectorise(model: Any) -> Callable[[], None]:
    """For a CPU: computes in float32 what MLX would compute number by number in fewer steps.

    Gives a function that takes it back.
    """
    by_kernels = cpu.rounds(model)
    undo_functions = vectorise_functions(model)
    replaced: list[tuple[Any, str, RoPE]] = []
    shared: dict[tuple[Any, ...], _Rotation] = {}
    for module in list(model.modules()):
        for name, child in module.children().items():
            if type(child) is RoPE:
                key = (child.dims, child.traditional, child.base, child.scale)
                rotation = shared.setdefault(key, _Rotation(child, by_kernels))
                module[name] = SharedRoPE(child, rotation)
                replaced.append((module, name, child))

    def undo() -> None:
        undo_functions()
        for module, name, child in replaced:
            module[name] = child

    return undo


def vectorise_functions(model: Any) -> Callable[[], None]:
    """The part of it that concerns functions of single numbers. Gives what takes it back.

    By the kernels, these give what MLX's own do for any numbers; without, for finite ones.
    """
    by_kernels = cpu.rounds(model)
    swiglu, library = (cpu.swiglu, _NN_BY_KERNELS) if by_kernels else (_swiglu, nn)
    for theirs in (activations.swiglu, _swiglu, cpu.swiglu):
        _put(model, "swiglu", theirs, swiglu)
    _put(model, "nn", nn if by_kernels else _NN_BY_KERNELS, library)

    def undo() -> None:
        _put(model, "swiglu", swiglu, activations.swiglu)
        _put(model, "nn", library, nn)

    return undo


def _attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: Any,
    sinks: mx.array | None = None,
) -> mx.array:
    attend: Callable[..., mx.array] | None = getattr(cache, "attend", None)
    if attend is not None:
        if mask is not None:
            raise NotImplementedError("a mask of the model's own")
        return attend(queries, keys, values, scale, sinks)
    return base.scaled_dot_product_attention(queries, keys, values, cache, scale, mask, sinks)


def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    if gate.dtype == x.dtype == mx.float32:
        return vector_math.swiglu(gate, x)
    return activations.swiglu(gate, x)  # type: ignore[no-any-return]


class _NN(ModuleType):
    """`mlx.nn` but for the functions that the kernels have: model files call these by `nn.`."""

    gelu = staticmethod(cpu.gelu)
    gelu_approx = staticmethod(cpu.gelu_approx)

    def __getattr__(self, name: str) -> Any:
        return getattr(nn, name)


_NN_BY_KERNELS = _NN(nn.__name__)


def _put(model: Any, name: str, there: object, ours: object) -> None:
    for module in _files(model):
        if getattr(module, name, None) is there:
            setattr(module, name, ours)


def _files(model: Any) -> Iterator[ModuleType]:
    names = {type(part).__module__ for part in model.modules()}
    yield from (sys.modules[name] for name in names if name.startswith("mlx_lm."))


class _Trimmed(Module):
    """A head behind what chooses its inputs."""

    def __init__(self, inner: Module, head: Head) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = inner
        self._head = head

    def __call__(self, x: mx.array) -> mx.array:
        return self.inner(self._head.inputs(x))  # type: ignore[no-any-return]


def _after(head: Head, inner: Callable[[mx.array], mx.array]) -> Callable[[mx.array], mx.array]:
    return lambda x: inner(head.inputs(x))


class SharedRoPE(Module):
    """A rotary embedding whose angles are computed once a step for all layers, not twice in each.

    Of use where the offset is an array of positions, one for each row of a single token.
    """

    def __init__(self, plain: RoPE, rotation: _Rotation) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # In a tuple and by an underscore, since what they hold is no parameter of the model.
        self._ways = (plain, rotation)

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        """Rotates x, [rows, heads, tokens, dimensions], as the module that it stands for."""
        plain, rotation = self._ways
        single = x.shape[2] == 1 and x.dtype == mx.float32
        if not isinstance(offset, mx.array) or offset.ndim != 1 or not single:
            return plain(x, offset=offset)  # type: ignore[arg-type,no-any-return]
        return rotation(x, offset)


class _Rotation:
    """x -> x * cos + (x with the halves of each pair swapped, one negated) * sin.

    The angles are those of an array of positions, as long as the very same array is given: which
    nobody may change in place.
    """

    def __init__(self, plain: RoPE, by_kernels: bool) -> None:
        self._plain = plain
        self._by_kernels = by_kernels
        self._offset: mx.array | None = None
        self._tables: dict[int, tuple[mx.array, mx.array, mx.array]] = {}
        """By the size of a head: the matrix that swaps, the cosines, the sines."""

    def __call__(self, x: mx.array, offset: mx.array) -> mx.array:
        if self._offset is not offset:
            self._offset, self._tables = offset, {}
        size = x.shape[-1]
        if size not in self._tables:
            swap = _swap(size, self._plain.dims, self._plain.traditional)
            self._tables[size] = swap, *self._tables_for(offset, size)
        swap, cos, sin = self._tables[size]
        if self._by_kernels:
            return cpu.rotate(x, cos, sin, self._plain.dims, self._plain.traditional)
        return x * cos + (x @ swap) * sin

    def _tables_for(self, offset: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """cos and sin, [rows, 1, 1, size], as the embedding itself has them.

        Rotating a vector whose pairs are all (1, 0) gives (cos, sin) of each pair.
        """
        dims, traditional = self._plain.dims, self._plain.traditional
        first, second = _pairs(dims, traditional)
        probe = [0.0] * size
        for place in first:
            probe[place] = 1.0
        rows = mx.broadcast_to(mx.array(probe), (offset.shape[0], 1, 1, size))
        turned = self._plain(rows, offset=offset)  # type: ignore[arg-type]
        cos_at, sin_at = list(range(size)), list(range(size))
        for one, other in zip(first, second, strict=True):
            cos_at[one] = cos_at[other] = one
            sin_at[one] = sin_at[other] = other
        cos, sin = turned[..., mx.array(cos_at)], turned[..., mx.array(sin_at)]
        if size > dims:  # The rest is left as it is.
            cos = mx.concatenate([cos[..., :dims], mx.ones((*cos.shape[:-1], size - dims))], -1)
            sin = mx.concatenate([sin[..., :dims], mx.zeros((*sin.shape[:-1], size - dims))], -1)
        return cos, sin


def _pairs(dims: int, traditional: bool) -> tuple[range, range]:
    """The places of each pair's first and second half."""
    if traditional:
        return range(0, dims, 2), range(1, dims, 2)
    return range(dims // 2), range(dims // 2, dims)


@lru_cache
def _swap(size: int, dims: int, traditional: bool) -> mx.array:
    """The matrix that swaps the halves of each pair and negates the second, [size, size]."""
    matrix = [[0.0] * size for _ in range(size)]
    for one, other in zip(*_pairs(dims, traditional), strict=True):
        matrix[other][one] = -1.0
        matrix[one][other] = 1.0
    swap = mx.array(matrix)
    mx.eval(swap)  # Used again, maybe by another thread.
    return swap
