"""Adds adapters (LoRA) to what a model's linear layers compute, for some of its inputs and not for
others: so requests with different adapters, and without one, share their passes.

A layer that some adapter changes gets a module around it. The base's own product is the same for
all inputs, quantised or not. Where one adapter's inputs are neighbours, what it adds are two
products; otherwise each input's matrices are gathered out of those of all adapters. Belongs to the
thread that owns MLX.

Matrices of one rank and type lie in one array for each layer, so that they take what they took in
their file and no more. To take one out writes nothing: it can be done where memory has run out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
from mlx.nn.layers.base import Module

from headrace_runner.models.adapters import Place, places_in
from headrace_runner.models.insides import new_caches

_PROBE = (3, 5)
"""Inputs and tokens of a pass that is tried: numbers that no layer's shape has by accident."""

Run: TypeAlias = tuple[str | None, int]
"""So many neighbouring inputs of a pass, and the key of their adapter."""
_Keys: TypeAlias = tuple[str | None, ...]
"""Of adapters, in the order of their matrices; None: that place is empty."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What an adapter adds to a layer: (x @ a) @ b."""

    a: mx.array
    """[inputs, rank]"""
    b: mx.array
    """[rank, outputs], the scale within."""

    @property
    def kind(self) -> tuple[int, mx.Dtype, mx.Dtype]:
        """Pairs of one layer that have the same can lie in one array."""
        return self.a.shape[1], self.a.dtype, self.b.dtype


class Mixture:
    """Which inputs of the pass that is being computed have which adapter.

    A pass's inputs are [inputs, tokens, size], as all layers see them.
    """

    def __init__(self) -> None:
        self._set(())

    @contextmanager
    def of(self, runs: Iterable[Run]) -> Iterator[None]:
        """Meanwhile the model's inputs have these adapters, one run after another."""
        self._set(runs)
        try:
            yield
        finally:
            self._set(())

    def _set(self, runs: Iterable[Run]) -> None:
        self.inputs = 0
        self.spans: dict[str, list[slice]] = {}
        """Of each adapter: where its inputs are."""
        for key, count in runs:
            start, self.inputs = self.inputs, self.inputs + count
            if key is not None and count:
                mine = self.spans.setdefault(key, [])
                if mine and mine[-1].stop == start:
                    start = mine.pop().start
                mine.append(slice(start, self.inputs))
        self._picks: dict[_Keys, tuple[mx.array, mx.array]] = {}

    def picks(self, order: _Keys) -> tuple[mx.array, mx.array]:
        """Which of the adapters in this order each input has, [inputs], and whether it has one of
        them, [inputs, 1, 1]. Layers with the same adapters share them."""
        if order not in self._picks:
            places = [-1] * self.inputs
            for place, key in enumerate(order):
                for span in self.spans.get(key or "", ()):
                    places[span] = [place] * (span.stop - span.start)
            found = mx.array(places, mx.int32)
            self._picks[order] = mx.maximum(found, 0), (found >= 0)[:, None, None]
        return self._picks[order]


class _Adapted(Module):
    """A linear layer, and what adapters add to it."""

    def __init__(self, path: str, inner: Module, mixture: Mixture) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = inner
        self.added = _Added()
        self._path = path
        self._mixture = mixture

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.inner(x)
        for stack in self.added.stacks:
            if keys := [key for key in self._mixture.spans if key in stack.keys]:
                y = self._with(stack, keys, x, y)
        return y

    def _with(self, stack: _Stack, keys: Sequence[str], x: mx.array, y: mx.array) -> mx.array:
        """The product, with what those of one stack add to it."""
        mixture = self._mixture
        spans = mixture.spans[keys[0]]
        pair = stack.pair(keys[0]) if len(keys) == len(spans) == 1 else None
        if pair is not None and spans[0] == slice(0, mixture.inputs):
            return y + ((x @ pair.a) @ pair.b).astype(y.dtype)  # Whatever the shape is.
        shape, x, y = y.shape, self._by_inputs(x), self._by_inputs(y)
        if pair is not None:
            span = spans[0]
            y[span] = y[span] + ((x[span] @ pair.a) @ pair.b).astype(y.dtype)
        else:
            picks, has_one = mixture.picks(stack.keys)
            down = mx.gather_mm(x, stack.a, rhs_indices=picks)
            more = mx.gather_mm(down, stack.b, rhs_indices=picks)
            y = y + mx.where(has_one, more, 0).astype(y.dtype)
        return y.reshape(shape)

    def _by_inputs(self, x: mx.array) -> mx.array:
        """[inputs, tokens, size], also of a router's [inputs * tokens, size] and a step's [inputs,
        size]."""
        inputs = self._mixture.inputs
        if x.shape[0] != inputs and (x.ndim != 2 or x.shape[0] % inputs):
            raise NotImplementedError(f"{self._path} mixes the inputs of a pass")
        return x if x.ndim == 3 else x.reshape(inputs, -1, x.shape[-1])


@dataclass(slots=True)
class _Stack:
    """Matrices of one layer that have one rank and type, of several adapters."""

    keys: _Keys
    a: mx.array
    """[adapters, inputs, rank]"""
    b: mx.array
    """[adapters, rank, outputs]"""

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes

    def pair(self, key: str) -> Pair:
        """One adapter's own."""
        place = self.keys.index(key)
        return Pair(self.a[place], self.b[place])

    def pairs(self) -> dict[str, Pair]:
        """Those that are in use."""
        return {key: self.pair(key) for key in self.keys if key is not None}


def _stacked(pairs: Mapping[str, Pair]) -> _Stack:
    a, b = (mx.stack([getattr(pair, part) for pair in pairs.values()]) for part in "ab")
    mx.eval(a, b)  # One layer at a time, so that nothing is there twice for long.
    return _Stack(tuple(pairs), a, b)


class _Added:
    """The matrices of all adapters of one layer."""

    def __init__(self) -> None:
        self.stacks: list[_Stack] = []

    @property
    def nbytes(self) -> int:
        return sum(stack.nbytes for stack in self.stacks)

    def add(self, key: str, pair: Pair) -> None:
        """Puts an adapter's in. What MLX raises where memory is short leaves all as it was."""
        self.remove(key)
        for place, stack in enumerate(self.stacks):
            pairs = stack.pairs()
            if next(iter(pairs.values())).kind == pair.kind:
                self.stacks[place] = _stacked(pairs | {key: pair})
                return
        self.stacks.append(_stacked({key: pair}))

    def remove(self, key: str) -> None:
        """Takes an adapter's out. Allocates nothing: where there are others it leaves a gap."""
        for stack in self.stacks:
            stack.keys = tuple(None if each == key else each for each in stack.keys)
        self.stacks = [stack for stack in self.stacks if any(stack.keys)]

    def close_gaps(self) -> None:
        """Gives back what was taken out; raises as `add`."""
        for place, stack in enumerate(self.stacks):
            if None in stack.keys:
                self.stacks[place] = _stacked(stack.pairs())


class Adaptable:
    """A model whose linear layers adapters can be added to and taken from."""

    def __init__(self, model: Any, mixture: Mixture) -> None:
        self._model = model
        self._mixture = mixture
        self.places: Mapping[str, Place] = places_in(model)
        """As they were before anything was added."""
        self._adapted: dict[str, _Adapted] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all adapters, and of the gaps between them."""
        return sum(adapted.added.nbytes for adapted in self._adapted.values())

    def add(self, key: str, pairs: Mapping[str, Pair]) -> None:
        """Adds an adapter, by the paths of the layers that it changes: each one of `places`.

        Raises NotImplementedError naming a layer that it cannot change for some inputs alone. That,
        and what MLX raises where memory is short, leaves it out.
        """
        modules = dict(self._model.named_modules()) if pairs.keys() - self._adapted.keys() else {}
        try:
            for path, pair in pairs.items():
                if path not in self._adapted:
                    parent, _, name = path.rpartition(".")
                    around = _Adapted(path, modules[parent][name], self._mixture)
                    modules[parent][name] = self._adapted[path] = around
                self._adapted[path].added.add(key, pair)
            self._try(key)
        except BaseException:
            self.remove(key)
            raise

    def _try(self, key: str) -> None:
        """A pass with inputs that have the adapter, and one between them that has not.

        It is not computed: the shapes alone tell.
        """
        inputs, _ = _PROBE
        with self._mixture.of([(key, 1), (None, inputs - 2), (key, 1)]):
            self._model(mx.zeros(_PROBE, mx.uint32), cache=new_caches(self._model))

    def remove(self, key: str) -> None:
        """Takes an adapter away. Allocates nothing, and so may leave gaps that take memory."""
        for adapted in self._adapted.values():
            adapted.added.remove(key)

    def close_gaps(self) -> None:
        """Gives back the memory of those that were taken away, layer by layer.

        What MLX raises where memory is short leaves the gaps of some.
        """
        for adapted in self._adapted.values():
            adapted.added.close_gaps()
