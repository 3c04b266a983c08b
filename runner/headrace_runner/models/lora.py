"""Adds adapters (LoRA) to what a model's linear layers compute, for some of its inputs and not for
others: so requests with different adapters, and without one, share their passes.

A layer that some adapter changes gets a module around it. The base's own product is the same for
all inputs, quantised or not. Where one adapter's inputs are neighbours, what it adds are two
products; otherwise each input's matrices are gathered out of those of all adapters. Belongs to the
thread that owns MLX.
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
        self._picks: dict[tuple[str, ...], tuple[mx.array, mx.array]] = {}

    def picks(self, order: tuple[str, ...]) -> tuple[mx.array, mx.array]:
        """Which of the adapters in this order each input has, [inputs], and whether it has one of
        them, [inputs, 1, 1]. Layers with the same adapters share them."""
        if order not in self._picks:
            places = [-1] * self.inputs
            for place, key in enumerate(order):
                for span in self.spans.get(key, ()):
                    places[span] = [place] * (span.stop - span.start)
            found = mx.array(places, mx.int32)
            self._picks[order] = mx.maximum(found, 0), (found >= 0)[:, None, None]
        return self._picks[order]


class _Adapted(Module):
    """A linear layer, and what adapters add to it."""

    def __init__(self, inner: Module, mixture: Mixture) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = inner
        self.added = _Added()
        self._mixture = mixture

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = self.inner(x)
        mixture, added = self._mixture, self.added
        keys = [key for key in mixture.spans if key in added.ranks]
        if not keys:
            return y
        spans = mixture.spans[keys[0]]
        if len(keys) == len(spans) == 1:
            pair, span = added.pair(keys[0]), spans[0]
            if span == slice(0, mixture.inputs):  # Whatever the shape of the inputs is.
                return y + ((x @ pair.a) @ pair.b).astype(y.dtype)
            _check(x, mixture)
            y[span] = y[span] + ((x[span] @ pair.a) @ pair.b).astype(y.dtype)
            return y
        _check(x, mixture)
        picks, has_one = mixture.picks(tuple(added.ranks))
        down = mx.gather_mm(x, added.a, rhs_indices=picks)
        more = mx.gather_mm(down, added.b, rhs_indices=picks)
        return y + mx.where(has_one, more, 0).astype(y.dtype)


def _check(x: mx.array, mixture: Mixture) -> None:
    if x.ndim != 3 or x.shape[0] != mixture.inputs:
        raise NotImplementedError("a layer whose inputs are not those of the model")


class _Added:
    """The matrices of all adapters of one layer."""

    def __init__(self) -> None:
        self.ranks: dict[str, int] = {}
        """By key, in the order of the matrices. These have the greatest rank, filled with zeros."""
        self.a = self.b = mx.zeros((0, 0, 0))

    @property
    def nbytes(self) -> int:
        return self.a.nbytes + self.b.nbytes

    def pair(self, key: str) -> Pair:
        """One adapter's own."""
        place, rank = list(self.ranks).index(key), self.ranks[key]
        return Pair(self.a[place, :, :rank], self.b[place, :rank])

    def add(self, key: str, pair: Pair) -> None:
        self._hold({each: self.pair(each) for each in self.ranks} | {key: pair})

    def remove(self, key: str) -> None:
        if key in self.ranks:
            self._hold({each: self.pair(each) for each in self.ranks if each != key})

    def _hold(self, pairs: Mapping[str, Pair]) -> None:
        ranks = {key: pair.a.shape[1] for key, pair in pairs.items()}
        most = max(ranks.values(), default=0)
        a = [mx.pad(p.a, [(0, 0), (0, most - p.a.shape[1])]) for p in pairs.values()]
        b = [mx.pad(p.b, [(0, most - p.b.shape[0]), (0, 0)]) for p in pairs.values()]
        held = (mx.stack(a), mx.stack(b)) if pairs else (mx.zeros((0, 0, 0)),) * 2
        mx.eval(held)  # One layer at a time, so that nothing is there twice for long.
        (self.a, self.b), self.ranks = held, ranks


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
        """Bytes of all adapters."""
        return sum(adapted.added.nbytes for adapted in self._adapted.values())

    def add(self, key: str, pairs: Mapping[str, Pair]) -> None:
        """Adds an adapter, by the paths of the layers that it changes: each one of `places`.

        What MLX raises where memory is short leaves it out.
        """
        modules = dict(self._model.named_modules()) if pairs.keys() - self._adapted.keys() else {}
        try:
            for path, pair in pairs.items():
                if path not in self._adapted:
                    parent, _, name = path.rpartition(".")
                    around = _Adapted(modules[parent][name], self._mixture)
                    modules[parent][name] = self._adapted[path] = around
                self._adapted[path].added.add(key, pair)
        except BaseException:
            self.remove(key)
            raise

    def remove(self, key: str) -> None:
        """Takes an adapter away."""
        for adapted in self._adapted.values():
            adapted.added.remove(key)
