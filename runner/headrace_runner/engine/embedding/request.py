"""What the engine is asked for and what it answers, as plain values.

Times are `time.perf_counter_ns()` of this process.
"""

from __future__ import annotations

from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import TypeAlias

from headrace_runner.engine.stream import Failed, Last
from headrace_runner.models.encoders.encoder import Vectors


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Inputs to be embedded."""

    id: str
    inputs: tuple[tuple[int, ...], ...]
    """Tokens of each, 1 to as many as the model has positions for."""
    context: Context = field(default_factory=copy_context, compare=False, repr=False)
    """Of who asks, for what the engine logs of the request."""


@dataclass(frozen=True, slots=True)
class Started:
    """The request has left the line; its first batch begins."""

    at: int


@dataclass(frozen=True, slots=True)
class Finished(Last):
    """All inputs are embedded."""

    at: int
    vectors: Vectors
    """One row for each input, in their order; pooled, and not scaled."""
    batches: int
    """In how many batches, which it may have shared with others."""


Event: TypeAlias = Started | Finished | Failed
