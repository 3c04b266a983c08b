"""How far a pull or an import is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Progress:
    """One phase's state. Phases: wait, download, verify, convert, store."""

    phase: str
    done: int
    """Bytes."""
    total: int
    """Bytes; 0 where unknown."""


OnProgress: TypeAlias = Callable[[Progress], None]
