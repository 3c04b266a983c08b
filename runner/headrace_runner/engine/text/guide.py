"""What a row may draw next: by a grammar, and by how long it may reason.

A grammar is about the answer. So it sleeps while the model reasons, and while it calls a tool:
these are stretches of the output with marks around them. The tokens so far say all; so a row that
is resumed, or begins anew, is guided as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace_runner.models.grammar import Grammar, GrammarError, Matcher
from headrace_runner.models.tokenizer import Tokenizer

__all__ = ["GrammarError", "Guidance", "Guide", "Stretch"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of an output that no grammar is about, between two marks."""

    start: int | None
    """The token that opens it; None where no single one does."""
    end: bytes
    """What closes it."""
    body: Grammar | None = None
    """What stands between the marks; None: anything."""

    @classmethod
    def between(
        cls, tokenizer: Tokenizer, start: str, end: str, body: Grammar | None = None
    ) -> Stretch:
        tokens = tokenizer.encode(start, add_special=False)
        return cls(tokens[0] if len(tokens) == 1 else None, end.encode(), body)


@dataclass(frozen=True, slots=True)
class Guidance:
    """What guides the choices of one request."""

    tokenizer: Tokenizer
    grammar: Grammar | None = None
    reasoning: Stretch | None = None
    in_reasoning: bool = False
    """Whether the prompt has opened the reasoning."""
    budget: int | None = None
    """Tokens of reasoning, after which it is closed."""
    calls: Stretch | None = None
    """Tool calls, which may come in place of the answer."""
    must_call: bool = False
    """Whether they have to."""

    def begin(self, tokens: Iterable[int] = ()) -> Guide:
        """For a choice that has drawn these tokens so far."""
        guide = Guide(self)
        for token in tokens:
            guide.take(token)
        return guide


class Guide:
    """Where one choice is. Belongs to the engine's thread."""

    def __init__(self, guidance: Guidance) -> None:
        self._guidance = guidance
        self._matcher: Matcher | None = None
        if guidance.grammar is not None:
            self._matcher = guidance.grammar.matcher()
        self._stretch = guidance.reasoning if guidance.in_reasoning else None
        self._tail = b""
        """The end of the stretch so far, as far as its mark may have begun there."""
        self._reasoned = 0
        """Tokens."""
        self._closing: list[int] = []
        """Tokens that have to come next, the last one first."""
        self._fresh = True
        """Whether nothing of the answer has come."""
        self._called = False
        self._body: Matcher | None = None
        """Where the stretch under way is in its own grammar."""

    def take(self, token: int) -> None:
        """The choice goes on with a token."""
        if self._closing and token == self._closing[-1]:
            self._closing.pop()
        if self._stretch is not None:
            self._go_on(self._stretch, token)
        elif (opened := self._opened_by(token)) is not None:
            self._stretch, self._tail = opened, b""
            self._body = None if opened.body is None else opened.body.matcher()
        else:
            self._fresh = False
            if self._matcher is not None:
                self._matcher.take(token)

    def mark(self, allowed: NDArray[np.bool_]) -> None:
        """Sets to False, in [vocabulary], what may not come next.

        Raises GrammarError where that cannot be said any more.
        """
        if self._stretch is not None:
            if self._closing:
                allowed[:] = False
                allowed[self._closing[-1]] = True
            elif self._body is not None:
                self._mark_body(self._body, self._stretch, allowed)
            return
        if self._guidance.must_call:
            allowed[:] = False
        elif self._matcher is not None:
            self._matcher.mark(allowed)
        else:
            return
        if self._fresh:
            allowed[self._openings()] = True
            if self._called:
                allowed[self._ends] = True

    def _mark_body(self, body: Matcher, stretch: Stretch, allowed: NDArray[np.bool_]) -> None:
        """Where the body may end, its mark may come instead of the end of the text."""
        body.mark(allowed)
        if bool(allowed[self._ends].any()):
            allowed[self._ends] = False
            allowed[self._mark_of_the_end(stretch)[0]] = True

    @property
    def _ends(self) -> list[int]:
        return list(self._guidance.tokenizer.eos_ids)

    def _mark_of_the_end(self, stretch: Stretch) -> list[int]:
        return self._guidance.tokenizer.encode(stretch.end.decode(), add_special=False)

    def _go_on(self, stretch: Stretch, token: int) -> None:
        self._reasoned += stretch is self._guidance.reasoning
        tail = self._tail + self._guidance.tokenizer.token_bytes(token)
        if stretch.end and stretch.end in tail:
            self._called = self._called or stretch is self._guidance.calls
            self._stretch, self._body, self._closing = None, None, []
            return
        self._tail = tail[-len(stretch.end) :] if stretch.end else b""
        if stretch is self._guidance.reasoning and self._reasoned == self._guidance.budget:
            self._closing = self._mark_of_the_end(stretch)[::-1]
        elif self._body is not None and not self._closing:
            self._go_on_in(self._body, stretch, token)

    def _go_on_in(self, body: Matcher, stretch: Stretch, token: int) -> None:
        """The body goes on, or its end has begun: then the rest of the mark has to follow."""
        first, *rest = self._mark_of_the_end(stretch)
        if token == first and not body.may_take(token):
            self._closing = rest[::-1]
        else:
            body.take(token)

    def _opened_by(self, token: int) -> Stretch | None:
        if self._fresh:
            for stretch in (self._guidance.reasoning, self._guidance.calls):
                if stretch is not None and token == stretch.start:
                    return stretch
        return None

    def _openings(self) -> list[int]:
        guidance = self._guidance
        reasoning = None if self._reasoned or self._called else guidance.reasoning
        return [
            s.start for s in (reasoning, guidance.calls) if s is not None and s.start is not None
        ]
