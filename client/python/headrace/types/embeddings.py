"""Texts as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from headrace.types.completion import Usage

EmbeddingInput: TypeAlias = str | Sequence[int]
"""A text, or tokens that are taken as they are."""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of a request's inputs, each list in the order of the inputs."""

    vectors: list[list[float]]
    """One for each input."""

    dimensions: int
    """Length of each vector."""

    normalized: bool
    """Whether the vectors are scaled to length 1, so that a product of two is their cosine."""

    prompt_tokens: tuple[int, ...]
    """Tokens of each input."""

    truncated: tuple[bool, ...]
    """Whether each input was cut."""

    usage: Usage
    """Tokens of all inputs."""

    digest: str
    """Digest of the model that served the call. Vectors of different models do not compare."""
