"""Texts as the tokens that an encoder computes: between the special tokens that it was trained
with, which stay where a text is cut."""

from __future__ import annotations

from headrace.errors import UnsupportedModel
from headrace_runner.models.tokenizer import Tokenizer

_PROBE = "a"


class TextEncoder:
    """Tokenizes texts for one encoder. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, *, lower_case: bool) -> None:
        """Raises UnsupportedModel for a tokenizer that puts more than a frame around a text."""
        self._tokenizer = tokenizer
        self._lower_case = lower_case
        bare = tokenizer.encode(_PROBE, add_special=False)
        whole = tokenizer.encode(_PROBE, add_special=True)
        place = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), None)
        if place is None or not bare:
            raise UnsupportedModel(
                "its tokenizer changes a text that it puts special tokens around"
            )
        self._before, self._after = whole[:place], whole[place + len(bare) :]

    @property
    def frame(self) -> int:
        """Special tokens around a text."""
        return len(self._before) + len(self._after)

    def encode(self, text: str) -> list[int]:
        """All tokens of a text, the special ones included."""
        text = text.lower() if self._lower_case else text
        return [*self._before, *self._tokenizer.encode(text, add_special=False), *self._after]

    def cut(self, tokens: list[int], longest: int) -> list[int]:
        """The tokens of a text, of which so many are left out at its end that `longest` remain."""
        text = tokens[len(self._before) : len(tokens) - len(self._after)]
        return [*self._before, *text[: longest - self.frame], *self._after]
