"""What an engine needs of those who do its work, and what they report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from headrace_runner.engine.tally import Distribution

E = TypeVar("E")
R_contra = TypeVar("R_contra", contravariant=True)

Deliver: TypeAlias = Callable[[list[tuple[int, list[E]]]], None]
"""Takes the events of a step, by the requests' numbers."""

_NONE = Distribution()


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A reading of the engine, made by its own thread. Sizes in bytes."""

    weights_bytes: int = 0
    kv_bytes: int = 0
    kv_reserved_bytes: int = 0
    kv_limit_bytes: int = 0
    prefix_bytes: int = 0
    adapters_bytes: int = 0
    active_bytes: int = 0
    peak_bytes: int = 0
    cache_bytes: int = 0
    prompts: int = 0
    cached_prompts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    step_seconds: Distribution = _NONE
    step_rows: Distribution = _NONE


class Worker(Protocol[R_contra]):
    """All requests of one model, from their arrival to their end, on the thread that owns every MLX
    object. Its answers are events, which it hands over by itself."""

    @property
    def stats(self) -> EngineStats: ...

    @property
    def busy(self) -> bool:
        """Whether there is something to compute."""

    @property
    def rows(self) -> int:
        """How much is computed at once now: rows of text, or requests for images."""

    def take(self, uid: int, request: R_contra) -> None:
        """Puts a request in line."""

    def drop(self, uids: set[int]) -> None:
        """Forgets requests, wherever they are."""

    def park(self, uid: int, *, parked: bool) -> None:
        """Takes a request whose reader is behind out of the work for a while, or back in."""

    def admit(self) -> None:
        """Takes up, from the line, whom there is room for."""

    def step(self) -> None:
        """Computes the next step of all who are admitted."""

    def rest(self) -> None:
        """Nothing has come for a while: memory that nothing uses is given back."""
