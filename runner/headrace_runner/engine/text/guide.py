"""What a row may draw next: by a grammar, and by how long it may reason.

A grammar is about the answer. So it sleeps while the model reasons, and while it calls a tool:
these are stretches of the output with marks around them, the same that `parts` sets apart. Where
nothing holds the text itself, they begin wherever their marks stand. The tokens so far say all; so
a row that is resumed, or begins anew, is guided as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

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
    completing: Sequence[Sequence[int]] = ()
    """For one with a body: the tokens that complete `end`, by how many bytes of it are there."""

    @classmethod
    def between(
        cls, tokenizer: Tokenizer, start: str, end: str, body: Grammar | None = None
    ) -> Stretch:
        tokens, mark = tokenizer.encode(start, add_special=False), end.encode()
        completing = () if body is None else _completing(tokenizer, mark)
        return cls(tokens[0] if len(tokens) == 1 else None, mark, body, completing)

    def ending_after(self, tail: bytes) -> list[int]:
        """The tokens with which `end` is complete after a text that ends with `tail`."""
        return [
            token
            for there, tokens in enumerate(self.completing)
            if tail.endswith(self.end[:there])
            for token in tokens
        ]


@lru_cache(maxsize=8)
def _completing(tokenizer: Tokenizer, mark: bytes) -> Sequence[Sequence[int]]:
    """See `Stretch.completing`. Looks at the whole vocabulary."""
    found: list[list[int]] = [[] for _ in mark]
    for token in range(tokenizer.vocab_size):
        text = tokenizer.token_bytes(token)
        if mark in text:
            found[0].append(token)
        for there in range(1, len(mark)):
            if text.startswith(mark[there:]):
                found[there].append(token)
    return found


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
    field: str = "constraint"
    """Of the request that asks for it, for errors."""

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
        if (opened := self._openable().get(token)) is not None:
            self._open(opened)
        elif self._stretch is not None:
            self._go_on(self._stretch, token)
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
            elif self._held and self._stretch is self._guidance.reasoning:
                self._mark_reasoning(allowed)
            return
        if self._guidance.must_call:
            allowed[:] = False
        elif self._matcher is not None:
            self._matcher.mark(allowed)
        else:
            return
        if self._fresh:
            allowed[list(self._openable())] = True
            if self._called:
                allowed[self._ends] = True

    def _mark_reasoning(self, allowed: NDArray[np.bool_]) -> None:
        """What is asked for is yet to come: so no end, and no call that could be anything."""
        allowed[self._ends] = False
        calls = self._guidance.calls
        if calls is not None and calls.start is not None and calls.body is None:
            allowed[calls.start] = False

    def _mark_body(self, body: Matcher, stretch: Stretch, allowed: NDArray[np.bool_]) -> None:
        """Where the body may end, its mark may come instead of the end of the text, and nowhere
        else: within a string it would cut the body off."""
        body.mark(allowed)
        whole = bool(allowed[self._ends].any())
        allowed[[*self._ends, *stretch.ending_after(self._tail)]] = False
        if whole:
            allowed[self._mark_of_the_end(stretch)[0]] = True
        elif not allowed.any():
            raise GrammarError("the mark that ends a call cannot stand within it")

    @property
    def _held(self) -> bool:
        """Whether the output has to be anything, beside what its stretches are."""
        return self._matcher is not None or self._guidance.must_call

    @property
    def _ends(self) -> list[int]:
        return list(self._guidance.tokenizer.eos_ids)

    def _mark_of_the_end(self, stretch: Stretch) -> list[int]:
        return self._guidance.tokenizer.encode(stretch.end.decode(), add_special=False)

    def _open(self, stretch: Stretch) -> None:
        self._stretch, self._tail = stretch, b""
        self._body = None if stretch.body is None else stretch.body.matcher()
        self._keep_to_budget(stretch)

    def _keep_to_budget(self, stretch: Stretch) -> None:
        budget = self._guidance.budget
        if budget is None or stretch is not self._guidance.reasoning or self._closing:
            return
        if self._reasoned >= budget:
            self._closing = self._mark_of_the_end(stretch)[::-1]

    def _go_on(self, stretch: Stretch, token: int) -> None:
        self._reasoned += stretch is self._guidance.reasoning
        tail = self._tail + self._guidance.tokenizer.token_bytes(token)
        if stretch.end and stretch.end in tail:
            self._called = self._called or stretch is self._guidance.calls
            self._stretch, self._body, self._closing = None, None, []
            return
        self._tail = tail[-len(stretch.end) :] if stretch.end else b""
        self._keep_to_budget(stretch)
        if self._body is not None and not self._closing:
            self._go_on_in(self._body, stretch, token)

    def _go_on_in(self, body: Matcher, stretch: Stretch, token: int) -> None:
        """The body goes on, or its end has begun: then the rest of the mark has to follow."""
        first, *rest = self._mark_of_the_end(stretch)
        if token == first and not body.may_take(token):
            self._closing = rest[::-1]
        else:
            body.take(token)

    def _openable(self) -> dict[int, Stretch]:
        """The stretches that may begin here, by the token that opens each."""
        guidance, found = self._guidance, [self._guidance.reasoning, self._guidance.calls]
        if self._stretch is not None:
            # A call ends the reasoning that it stands in. Under a grammar one that could be
            # anything may not: who only speaks of the mark would never come to the answer.
            free = guidance.calls is not None and guidance.calls.body is None
            calls = self._stretch is guidance.reasoning and not (self._held and free)
            found = [guidance.calls] if calls else []
        elif self._held and not self._fresh:
            found = []
        elif self._held and (self._reasoned or self._called):
            found = [guidance.calls]
        return {each.start: each for each in found if each is not None and each.start is not None}
