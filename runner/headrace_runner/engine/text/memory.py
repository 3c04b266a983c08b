"""The memory that rows may take: planned after the load, reserved at admission. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_KV_SHARE = 0.5
_PREFIX_SHARE = 0.1
_LEAST_PREFIX = 256 << 20


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What the engine may fill beside the weights, in bytes."""

    kv_bytes: int
    """Keys and values of the rows that are admitted, at their longest."""
    prefix_bytes: int
    """What is remembered of earlier rows."""


def plan(
    available: int, weights: int, *, kv_bytes: int | None = None, prefix_bytes: int | None = None
) -> MemoryPlan:
    """Divides what is free after the load; what is given is taken as it is.

    The rest, some 40%, is for the computation and for the room that rows have to spare: of another
    row in eight, of the window's longest, of the steps to come. What is remembered grows with the
    model, since a token's keys and values do.
    """
    if prefix_bytes is None:
        prefix_bytes = min(int(available * _PREFIX_SHARE), max(_LEAST_PREFIX, weights // 2))
    if kv_bytes is None:
        kv_bytes = int(available * _KV_SHARE)
    return MemoryPlan(kv_bytes, prefix_bytes)


class Reservations:
    """Who has reserved how much of a limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: dict[int, int] = {}

    @property
    def reserved(self) -> int:
        """Bytes."""
        return sum(self._held.values())

    def fits(self, owner: int, needed: int, beside: int = 0) -> bool:
        """Whether there is room for an owner, with so many bytes taken for what nobody owns."""
        mine = self._held.get(owner, 0)
        return self.reserved - mine + beside + needed <= self.limit

    def take(self, owner: int, needed: int, beside: int = 0) -> bool:
        """Reserves for an owner if it fits. One who is alone is never turned away: nothing that
        could end would make more room."""
        self._held.pop(owner, None)
        if self._held and not self.fits(owner, needed, beside):
            return False
        self._held[owner] = needed
        return True

    def free(self, owner: int) -> None:
        """Gives back what an owner has reserved, if it has."""
        self._held.pop(owner, None)
