"""Byte-level BPE from a GGUF file, written from its definition: slow, plain, and independent.

Reads the file with the `gguf` package and splits words with llama.cpp's expressions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import regex  # type: ignore[import-untyped]

_WORDS = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
_DIGITS = regex.compile(r"(\p{N})")
_POOLS = (
    "abcdefgh XYZ'",
    "0123456789 .,-",
    " \t\n\r\u00a0\u3000",
    "äöüßéñ",
    "日本語한국어",
    "🎉👩\u200d🚀\ufe0f",
    "()[]{}<>|=+*&^%$#@!~`\"'",
    "٠١٢½²Ⅷ",
)
_TEXTS = (
    "",
    " ",
    "Hello world",
    "  leading and trailing  ",
    "tab\tx\n\n\ny",
    "12345 and 3.14",
    "it's we'll I'M don't",
    "日本語テスト 한국어",
    "naïve café",
    "👩\u200d👩\u200d👧 emoji 🎉",
    "def f(x):\r\n    return x**2",
)


def varied_texts(count: int, special: Sequence[str] = ()) -> Iterator[str]:
    """Texts of all kinds, the same each time; some with special tokens in them."""
    dice = random.Random(3)
    yield from _TEXTS
    for _ in range(count):
        parts = [dice.choice(dice.choice(_POOLS)) for _ in range(dice.randint(1, 40))]
        if special and dice.random() < 0.3:
            parts.insert(dice.randrange(len(parts)), dice.choice(special))
        yield "".join(parts)


def _byte_letters() -> list[str]:
    """GPT-2's letter for each byte: itself where printable, else from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, shifted = [], 0
    for byte in range(256):
        if byte in printable:
            letters.append(chr(byte))
        else:
            letters.append(chr(256 + shifted))
            shifted += 1
    return letters


class ReferenceBpe:
    """Encodes as a file with the "smollm" pre-tokenizer must be encoded."""

    def __init__(self, path: Path) -> None:
        fields = gguf.GGUFReader(path).fields
        tokens = fields["tokenizer.ggml.tokens"].contents()
        types = fields["tokenizer.ggml.token_type"].contents()
        merges = fields["tokenizer.ggml.merges"].contents()
        self._ids = {token: i for i, token in enumerate(tokens)}
        self._ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self._letters = _byte_letters()
        special = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
        self._special = regex.compile("(" + "|".join(map(regex.escape, special)) + ")")

    def encode(self, text: str) -> list[int]:
        ids = []
        for i, part in enumerate(self._special.split(text)):
            if i % 2:
                ids.append(self._ids[part])
                continue
            for piece in _DIGITS.split(part):
                for word in _WORDS.findall(piece):
                    ids += [self._ids[token] for token in self._merge(word)]
        return ids

    def _merge(self, word: str) -> list[str]:
        parts = [self._letters[byte] for byte in word.encode()]
        while len(parts) > 1:
            ranks = [
                self._ranks.get((parts[i], parts[i + 1]), 1 << 40) for i in range(len(parts) - 1)
            ]
            best = min(ranks)
            if best == 1 << 40:
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return parts
