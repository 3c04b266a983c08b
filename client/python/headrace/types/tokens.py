"""Text as tokens, and tokens as text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """One token and its place in the text."""

    token_id: int
    """The token."""

    piece: bytes
    """The token's bytes. They need not be whole UTF-8."""

    start: int
    """First byte of the token in the UTF-8 of the text."""

    end: int
    """The byte after its last. Equal to `start` for an added special token."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a text."""

    token_ids: tuple[int, ...]
    """The tokens, in order."""

    pieces: tuple[TokenPiece, ...]
    """One entry for each token, when pieces were asked for."""


@dataclass(frozen=True, slots=True)
class Detokenized:
    """The text of tokens."""

    data: bytes
    """The exact bytes. They need not be whole UTF-8."""

    text: str
    """The same as text, with U+FFFD for what is not UTF-8."""


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """A chat as a prompt."""

    prompt: str
    """The prompt as text, special tokens written out."""

    token_ids: tuple[int, ...]
    """The prompt as tokens, as a completion would use them."""


@dataclass(frozen=True, slots=True)
class TokenCount:
    """How long a prompt is."""

    token_count: int
    """Tokens in the prompt."""

    context_length: int
    """Tokens that the model's context holds."""

    fits: bool
    """Whether the prompt fits, with room for at least one token of output."""
