"""Adds adapters (LoRA) to what a model's linear layers compute, for some of its inputs and not for
others: so requests with different adapters, and without one, share their passes.

A layer that some adapter changes gets a module around it. The base's own product is the same for
all inputs, quantised or not; what an adapter adds is computed for its own inputs alone. Belongs to
the thread that owns MLX.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import mlx.core as mx
from mlx.nn.layers.base import Module

from headrace_runner.models.adapters import Place, places_in

Run: TypeAlias = tuple[str | None, int]
"""So many neighbouring inputs of a pass, and the key of their adapter."""
Where: TypeAlias = slice | mx.array | None
"""The places of an adapter's inputs among all of a pass; None: all of them."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What an adapter adds to a layer: (x @ a) @ b."""

    a: mx.array
    """[inputs, rank]"""
    b: mx.array
    """[rank, outputs], the scale within."""


class Mixture:
    """Which inputs of the pass that is being computed have which adapter.

    A pass's inputs are [inputs, tokens, size], as all layers see them.
    """

    def __init__(self) -> None:
        self.groups: tuple[tuple[str, Where], ...] = ()
        self.inputs = 0

    @contextmanager
    def of(self, runs: Iterable[Run]) -> Iterator[None]:
        """Meanwhile the model's inputs have these adapters, one run after another."""
        self.groups, self.inputs = _groups(runs)
        try:
            yield
        finally:
            self.groups, self.inputs = (), 0


def _groups(runs: Iterable[Run]) -> tuple[tuple[tuple[str, Where], ...], int]:
    spans: dict[str, list[tuple[int, int]]] = {}
    end = 0
    for key, count in runs:
        start, end = end, end + count
        if key is not None and count:
            mine = spans.setdefault(key, [])
            if mine and mine[-1][1] == start:
                start = mine.pop()[0]
            mine.append((start, end))
    return tuple((key, _where(mine, end)) for key, mine in spans.items()), end


def _where(spans: list[tuple[int, int]], inputs: int) -> Where:
    if spans == [(0, inputs)]:
        return None
    if len(spans) == 1:
        return slice(*spans[0])
    return mx.array([place for span in spans for place in range(*span)], mx.int32)


class _Adapted(Module):
    """A linear layer, and what adapters add to it."""

    def __init__(self, inner: Module, mixture: Mixture) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = inner
        self.pairs = _Pairs({})
        self._mixture = mixture

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.inner(x)
        mixture = self._mixture
        for key, where in mixture.groups:
            pair = self.pairs.by_key.get(key)
            if pair is None:
                continue  # This adapter leaves this layer as it is.
            if where is None:
                y = y + _added(x, pair, y.dtype)
                continue
            if x.shape[0] != mixture.inputs:
                raise NotImplementedError("a layer whose inputs are not those of the model")
            y[where] = y[where] + _added(x[where], pair, y.dtype)
        return y


@dataclass(frozen=True, slots=True)
class _Pairs:
    """In a value of its own, since a mapping in a module would be part of its parameters."""

    by_key: dict[str, Pair]


def _added(x: mx.array, pair: Pair, dtype: mx.Dtype) -> mx.array:
    return ((x @ pair.a) @ pair.b).astype(dtype)


class Adaptable:
    """A model whose linear layers adapters can be added to and taken from."""

    def __init__(self, model: Any, mixture: Mixture) -> None:
        self._model = model
        self._mixture = mixture
        self.places: Mapping[str, Place] = places_in(model)
        """As they were before anything was added."""
        self._adapted: dict[str, _Adapted] = {}

    def add(self, key: str, pairs: Mapping[str, Pair]) -> None:
        """Adds an adapter, by the paths of the layers that it changes: each one of `places`."""
        modules = dict(self._model.named_modules()) if pairs.keys() - self._adapted.keys() else {}
        for path, pair in pairs.items():
            if path not in self._adapted:
                parent, _, name = path.rpartition(".")
                around = _Adapted(modules[parent][name], self._mixture)
                modules[parent][name] = self._adapted[path] = around
            self._adapted[path].pairs.by_key[key] = pair

    def remove(self, key: str) -> None:
        """Takes an adapter away."""
        for adapted in self._adapted.values():
            adapted.pairs.by_key.pop(key, None)
