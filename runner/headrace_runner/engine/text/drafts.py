"""Guesses the next tokens of a row, to be verified in one step: speculative decoding. Pure.

The guess is what followed the last tokens where they stood before, in the prompt or the output
(Saxena, "Prompt lookup decoding", 2023): no second model, and right where text is quoted, edited
or repeated. How many tokens are worth guessing follows from how often guesses were right and from
what verifying took, as in Leviathan, Kalman and Matias, "Fast inference from transformers via
speculative decoding" (2023), section 3.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_RUN = 3
"""Tokens that must agree for a guess."""
_MOST = 8
"""Tokens of a guess."""
_GAIN = 1.05
"""What a guess must promise to be made: verifying costs more than was measured where it disturbs
others."""
_PATIENCE = 32
"""Steps without a guess after which one is tried again."""
_MEMORY = 0.2
"""Weight of the newest measurement in the averages."""


class Lookup:
    """Where each run of tokens stood last in a text, and what followed."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._followed: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: int) -> None:
        """Takes the next token of the text."""
        place = len(self._tokens)
        if place >= _RUN:
            self._followed[tuple(self._tokens[-_RUN:])] = place
        self._tokens.append(token)

    def guess(self, count: int) -> list[int]:
        """What may follow, so many tokens; none where the end is new."""
        place = self._followed.get(tuple(self._tokens[-_RUN:]))
        if place is None:
            return []
        guess: list[int] = []
        # The text may run into itself: what repeats goes on to.
        for at in range(place, place + count):
            known = at < len(self._tokens)
            guess.append(self._tokens[at] if known else guess[at - len(self._tokens)])
        return guess


class Worth:
    """How many tokens it pays to guess for one row."""

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self._right = 0.5
        self._passed = 0

    def count(self) -> int:
        """Tokens to guess next; 0: none.

        The one that promises most tokens in its time, when each is right with the chance that
        guesses had so far.
        """
        best, found = _GAIN, 0
        expected = 1.0
        for count in range(1, _MOST + 1):
            expected += self._right**count
            gain = expected / self._cost.of(count)
            if gain > best:
                best, found = gain, count
        if not found and self._passed >= _PATIENCE:
            found = 1
        self._passed = 0 if found else self._passed + 1
        return found

    def verified(self, guessed: int, right: int) -> None:
        """Of so many guessed tokens the first so many were right."""
        # A token after a wrong one tells nothing.
        tried = min(right + 1, guessed)
        self._right += _MEMORY * (right / tried - self._right)


class Cost:
    """What steps take, in terms of a step without a guess."""

    def __init__(self) -> None:
        self._plain = 0.0
        self._more = 0.1
        """What one guessed token adds, as part of a plain step."""

    def of(self, count: int) -> float:
        """A step that verifies so many tokens, in plain steps."""
        return 1 + self._more * count

    def took(self, count: int, seconds: float) -> None:
        """A step with so many guessed tokens took so long."""
        if not count:
            self._plain += _MEMORY * (seconds - self._plain) if self._plain else seconds
        elif self._plain:
            more = max(0.0, seconds / self._plain - 1) / count
            self._more += _MEMORY * (more - self._more)


@dataclass(frozen=True, slots=True)
class Drafting:
    """What a row's next tokens are guessed from, and how many of them."""

    lookup: Lookup
    worth: Worth
