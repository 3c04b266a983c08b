"""Turns a stream of tokens into a stream of text.

Emits whole characters only: bytes that do not yet make one are kept for the next token. Never
emits a special token that is not asked for, and never looks back at more than one unfinished
character.
"""

import codecs
from collections.abc import Set

from headrace_runner.models.tokenizer import Tokenizer


class Detokenizer:
    """The text of one choice. Its outputs, joined, are the detokenized tokens."""

    def __init__(self, tokenizer: Tokenizer, shown: Set[int] = frozenset()) -> None:
        """`shown` are the special tokens that are text nevertheless."""
        self._tokenizer = tokenizer
        self._shown = shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drops_space = tokenizer.strips_first_space

    @property
    def pending(self) -> bool:
        """Whether bytes are waiting for the rest of their character."""
        return bool(self._decoder.getstate()[0])

    def push(self, token_id: int) -> str:
        """Take one token and give the text that it completes, which may be none.

        A byte that can belong to no character becomes U+FFFD at once.
        """
        if token_id in self._tokenizer.special_ids and token_id not in self._shown:
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._drops_space:
            # SentencePiece puts a space in front of a text, which is none of the text.
            self._drops_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def finish(self) -> str:
        """Give U+FFFD for bytes that are still waiting for the rest of their character."""
        return self._decoder.decode(b"", final=True)
