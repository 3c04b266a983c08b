"""The adapters (LoRA) of a model that are in memory: read when they are first needed, and given up
when others need the room. One that a request has is never given up. Belongs to the engine's thread.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from headrace.errors import UnsupportedParameter
from headrace_runner.models.adapters import WEIGHTS, Shapes, read_scale, read_shapes
from headrace_runner.models.device import is_allocation_failure
from headrace_runner.models.lora import Adaptable, Mixture, Pair
from headrace_runner.models.tensors import load_tensors

logger = logging.getLogger(__name__)

_FLOAT32 = 4
"""Bytes."""


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter that a request has."""

    key: str
    """Tells it from all others: of one key there are no two contents."""
    name: str
    """As the request gives it."""
    directory: Path


class Adapters:
    """Which adapters there are, in the order of their use, and who has them."""

    def __init__(self, model: Any, mixture: Mixture, *, most: int, in_float32: bool) -> None:
        """`most`: of adapters in memory. `in_float32`: whether their matrices are kept so,
        whatever type they are stored in."""
        self._adaptable = Adaptable(model, mixture)
        self._most = most
        self._in_float32 = in_float32
        self._loaded: OrderedDict[str, None] = OrderedDict()
        """Those that are in memory, the least recently used first."""
        self._owners: dict[int, str] = {}
        self._asked = ("", 0)
        """The one that was asked about last, and its bytes."""
        self._gaps = False
        """Whether there may be memory of some that are gone."""
        self.nbytes = 0
        """Bytes of those that are in memory, and of the gaps between them."""

    def needs(self, adapter: AdapterRef | None) -> int:
        """Bytes that it takes if it is to be in memory; 0 for one that is, and for none.

        Raises what `hold` raises.
        """
        if adapter is None or adapter.key in self._loaded:
            return 0
        if self._asked[0] != adapter.key:  # Who waits is asked about before each step.
            size = sum(map(self._size, self._shapes(adapter).values()))
            self._asked = adapter.key, size
        return self._asked[1]

    def make_place(self, adapter: AdapterRef | None) -> bool:
        """Gives up others where there are too many beside it. False where all are in use."""
        if adapter is None or adapter.key in self._loaded:
            return True
        while len(self._loaded) >= self._most:
            if not self.give_up_one():
                return False
        return True

    def give_up_one(self, but: AdapterRef | None = None) -> bool:
        """Gives up the one whose last use is longest ago; False where all are in use."""
        key = next(self._idle(but), None)
        if key is None:
            return False
        self._drop(key)
        self.close_gaps()
        return True

    def shed(self) -> None:
        """After an allocation failed: gives up all that nobody uses, and allocates nothing."""
        for key in list(self._idle()):
            self._drop(key)

    def close_gaps(self) -> None:
        """Gives back what was given up and is still there, as far as memory allows it."""
        if not self._gaps:
            return
        try:
            self._adaptable.close_gaps()
            self._gaps = False
        except Exception as error:
            if not is_allocation_failure(error):
                raise
        finally:
            self.nbytes = self._adaptable.nbytes

    def _idle(self, but: AdapterRef | None = None) -> Iterator[str]:
        busy = {*self._owners.values(), "" if but is None else but.key}
        return (key for key in self._loaded if key not in busy)

    def _drop(self, key: str) -> None:
        del self._loaded[key]
        self._adaptable.remove(key)
        self._gaps = True
        self.nbytes = self._adaptable.nbytes

    def hold(self, owner: int, adapter: AdapterRef | None) -> None:
        """Has it in memory until the owner frees it.

        Raises ModelCorrupt naming the file, UnsupportedParameter for one that does not fit the
        model, and what MLX raises where memory is short.
        """
        if adapter is None:
            return
        if adapter.key not in self._loaded:
            self._load(adapter)
        self._loaded.move_to_end(adapter.key)
        self._owners[owner] = adapter.key

    def _load(self, adapter: AdapterRef) -> None:
        before = self.nbytes
        try:
            self._adaptable.add(adapter.key, self._read(adapter))
        except NotImplementedError as error:
            what = f"{adapter.name} cannot be applied to single requests: {error}"
            raise UnsupportedParameter(what, field="adapter") from error
        finally:
            self._gaps = True  # Where it could be added in part alone.
            self.nbytes = self._adaptable.nbytes
        self._loaded[adapter.key] = None
        extra = {"adapter": adapter.name, "memory_bytes": self.nbytes - before}
        logger.info("adapter loaded", extra=extra)

    def free(self, owner: int) -> None:
        """The owner needs its adapter no more, if it had one."""
        self._owners.pop(owner, None)

    def _read(self, adapter: AdapterRef) -> dict[str, Pair]:
        shapes, scale = self._shapes(adapter), read_scale(adapter.directory)
        tensors = load_tensors(adapter.directory / WEIGHTS)
        pairs = {}
        for layer in shapes:
            a, b = (tensors[f"{layer}.lora_{part}"] for part in "ab")
            b = (b.astype(mx.float32) * scale).astype(b.dtype)
            if self._in_float32:
                a, b = a.astype(mx.float32), b.astype(mx.float32)
            pairs[layer] = Pair(a, b)
        return pairs

    def _shapes(self, adapter: AdapterRef) -> dict[str, Shapes]:
        found = read_shapes(adapter.directory)
        for path, shapes in found.items():
            place = self._adaptable.places.get(path)
            if place is None or not shapes.fit(place):
                what = f"{adapter.name} does not fit this model: see its {path}"
                raise UnsupportedParameter(what, field="adapter")
        return found

    def _size(self, shapes: Shapes) -> int:
        stored = shapes.a.nbytes + shapes.b.nbytes
        whole = _FLOAT32 * (shapes.a.elements + shapes.b.elements)
        return whole if self._in_float32 else stored
