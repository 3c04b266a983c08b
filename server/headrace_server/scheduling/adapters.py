"""The adapters (LoRA) of the store's models: what they take in memory, and who uses them."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from headrace.host.machine import Device
from headrace_server.scheduling import estimates
from headrace_server.store import Manifest

MOST = 8
"""Of one model, in the memory of a runner."""


def needs(adapter: Manifest, device: Device) -> int:
    """Bytes in a runner's memory: on a CPU it keeps them in float32, whatever its model has."""
    return estimates.weight_bytes(adapter, "float32" if device == "cpu" else "stored")


class Adapters:
    """Known by the digest of their base."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[Manifest, ...]] = {}
        self._uses: Counter[str] = Counter()
        """Requests with each adapter, by its digest: those that wait, too."""

    def set(self, manifests: Iterable[Manifest]) -> set[str]:
        """Know those among the models of the store. Gives the bases that have others now."""
        found: dict[str, list[Manifest]] = {}
        for manifest in manifests:
            if manifest.adapter is not None:
                found.setdefault(f"sha256:{manifest.adapter.base_digest}", []).append(manifest)
        before, self._of = self._of, {base: tuple(mine) for base, mine in found.items()}
        bases = before.keys() | self._of.keys()
        return {base for base in bases if before.get(base) != self._of.get(base)}

    def needs(self, base: str, device: Device) -> int:
        """Bytes of as many adapters of a base as a runner has at most, the largest ones."""
        sizes = (needs(adapter, device) for adapter in self._of.get(base, ()))
        return sum(heapq.nlargest(MOST, sizes))

    @contextmanager
    def using(self, digest: str | None) -> Iterator[None]:
        """While a request is served with this adapter, its wait included. None: without one."""
        if digest is None:
            yield
            return
        self._uses[digest] += 1
        try:
            yield
        finally:
            self._uses[digest] -= 1
            if not self._uses[digest]:
                del self._uses[digest]

    def in_use(self, digest: str) -> bool:
        """Whether a request is served with this adapter, or waits to be."""
        return digest in self._uses
