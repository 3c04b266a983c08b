"""How a prompt becomes the words that the emoji model reads, in training as in use.

A word is read twice: by its place in the vocabulary, if it has one, and by hashed n-grams of its
letters as in fastText (Bojanowski et al., "Enriching Word Vectors with Subword Information", 2017),
so that a plural, a slip of the pen or a word never seen still says something. The order of the
words says nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

MAX_WORDS = 12
"""Words past these are not read."""
MAX_LETTERS = 24
"""Letters of a word past these are not read."""

UNKNOWN = 0
"""The number of a word that is not in the vocabulary."""

_WORD = re.compile(r"[^\W_]+")

# Words that say nothing of what is to be seen.
# fmt: off
_EMPTY_WORDS = frozenset((
    "a", "an", "and", "by", "draw", "drawing", "emoji", "for", "i", "icon", "illustration", "image",
    "in", "it", "me", "my", "of", "on", "photo", "picture", "please", "show", "some", "that", "the",
    "this", "to", "with",
))
# fmt: on


def words(prompt: str) -> tuple[str, ...]:
    """The words of a prompt, at most `MAX_WORDS`, in lower case and without accents.

    Words that say nothing are left out, so that what comes back may be empty. A symbol is read as
    its Unicode name: "🌹" is "rose".
    """
    # What is cut off here could only matter to a prompt of words that are left out.
    spelled = "".join(map(_spelled, prompt[:2000]))
    plain = unicodedata.normalize("NFKD", spelled.casefold())
    letters = "".join(c for c in plain if not unicodedata.combining(c))
    found = (word[:MAX_LETTERS] for word in _WORD.findall(letters))
    return tuple(word for word in found if word not in _EMPTY_WORDS)[:MAX_WORDS]


def _spelled(character: str) -> str:
    if unicodedata.category(character) == "So":
        return f" {unicodedata.name(character, '')} "
    return character


def grams(word: str, buckets: int) -> tuple[int, ...]:
    """The n-grams of 3 and 4 letters of a word between marks of its ends, as numbers below
    `buckets`; at least one."""
    marked = f"<{word}>"
    pieces = [marked[i : i + n] for n in (3, 4) for i in range(len(marked) - n + 1)]
    return tuple(_fnv1a(piece) % buckets for piece in pieces or [marked])


def _fnv1a(text: str) -> int:
    """The 32-bit FNV-1a hash of the text in UTF-8."""
    value = 0x811C9DC5
    for byte in text.encode("utf-8", "surrogatepass"):
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words that have a place, numbered from 1, and how many buckets the n-grams have."""

    numbers: Mapping[str, int]
    buckets: int

    def number(self, word: str) -> int:
        return self.numbers.get(word, UNKNOWN)

    def grams(self, word: str) -> tuple[int, ...]:
        return grams(word, self.buckets)
