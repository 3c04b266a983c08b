"""The latest changes of a set of named values, numbered. Pure, and bounded.

Who knows the values at a revision and takes the changes since then knows them now. Who comes with a
revision that is too old takes them all anew; nothing is kept for anybody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Change(Generic[V]):
    """A value that is another one now, or gone."""

    revision: int
    name: str
    value: V | None
    """None: gone."""


class Journal(Generic[V]):
    """Named values, and how they came to be what they are."""

    def __init__(self, identity: str, limit: int) -> None:
        """`identity`: tells its tokens from other journals'. `limit`: changes kept."""
        self._identity = identity
        self._values: dict[str, V] = {}
        self._changes: deque[Change[V]] = deque(maxlen=limit)
        self.revision = 0
        """The number of the last change."""

    @property
    def values(self) -> Mapping[str, V]:
        """The values as they are now."""
        return MappingProxyType(self._values)

    def put(self, name: str, value: V | None) -> bool:
        """Set a value, or None to take it out. Returns whether that changed anything."""
        if self._values.get(name) == value:
            return False
        if value is None:
            del self._values[name]
        else:
            self._values[name] = value
        self.revision += 1
        self._changes.append(Change(self.revision, name, value))
        return True

    def since(self, revision: int) -> list[Change[V]] | None:
        """The changes after a revision, in order; None where not all of them are known."""
        missing = self.revision - revision
        if not 0 <= missing <= len(self._changes):
            return None
        return [change for change in self._changes if change.revision > revision]

    def token(self, revision: int) -> str:
        """A revision in a form that means nothing to other journals."""
        return f"{self._identity}.{revision}"

    def revision_of(self, token: str) -> int:
        """The revision of a token; of one that is not of this journal, one that is too old."""
        identity, _, number = token.rpartition(".")
        if identity != self._identity or not number.isdecimal() or len(number) > 18:
            return -1
        return int(number)
