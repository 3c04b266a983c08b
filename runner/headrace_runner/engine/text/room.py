"""What requests take of the memory that the engine may fill: their reservations, and the adapters
that they have. Belongs to the engine's thread.
"""

from __future__ import annotations

from headrace_runner.engine.text.adapters import AdapterRef, Adapters
from headrace_runner.engine.text.memory import Reservations


class Room:
    """One limit for keys and values and for adapters. Of these, idle ones go for who needs it."""

    def __init__(self, limit: int, adapters: Adapters) -> None:
        """`limit` in bytes."""
        self._reservations = Reservations(limit)
        self._adapters = adapters

    @property
    def limit(self) -> int:
        """Bytes."""
        return self._reservations.limit

    @property
    def reserved(self) -> int:
        """Bytes that requests may come to, without adapters."""
        return self._reservations.reserved

    @property
    def adapters_bytes(self) -> int:
        """Of the adapters in memory."""
        return self._adapters.nbytes

    def take(self, uid: int, needed: int, adapter: AdapterRef | None) -> bool:
        """Reserves so many bytes for a request, and has its adapter in memory, until it is freed.

        False where others have to end before. Raises what `Adapters.hold` raises; the reservation
        is then to be freed.
        """
        if not self._adapters.make_place(adapter):
            return False
        self._adapters.close_gaps()
        more = self._adapters.needs(adapter)
        while not self._reservations.fits(uid, needed, self._adapters.nbytes + more):
            if not self._adapters.give_up_one(but=adapter):
                break
        if not self._reservations.take(uid, needed, self._adapters.nbytes + more):
            return False
        self._adapters.hold(uid, adapter)
        return True

    def free(self, uid: int) -> None:
        """Gives back what a request has taken, if it has."""
        self._reservations.free(uid)
        self._adapters.free(uid)

    def shed(self) -> None:
        """After an allocation failed: gives up what nobody uses, and allocates nothing."""
        self._adapters.shed()
