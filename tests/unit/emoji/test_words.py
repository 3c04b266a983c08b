"""How a prompt becomes words, and words numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_runner.models.emoji.words import MAX_LETTERS, MAX_WORDS, Vocabulary, grams, words


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red rose", ("red", "rose")),
        ("  Please draw me THE Red_Rose!! ", ("red", "rose")),
        ("crème brûlée", ("creme", "brulee")),
        ("Straße", ("strasse",)),
        ("T-Rex, 100 points", ("t", "rex", "100", "points")),
        ("ｃａｔ", ("cat",)),
        ("🌹", ("rose",)),
        ("a🐱🌹b", ("cat", "face", "rose", "b")),
        ("赤い 薔薇", ("赤い", "薔薇")),
        ("", ()),
        ("an emoji of a", ()),
        ("?!… \0\n", ()),
        ("\ud800", ()),
    ],
)
def test_words_are_what_a_prompt_says_in_letters(prompt: str, expected: tuple[str, ...]) -> None:
    assert words(prompt) == expected


def test_what_is_too_long_is_cut_off() -> None:
    assert words("rose " * 100) == ("rose",) * MAX_WORDS
    assert words("x" * 10_000) == ("x" * MAX_LETTERS,)


@given(st.text())
def test_any_text_has_words_that_can_be_numbered(prompt: str) -> None:
    found = words(prompt)
    assert len(found) <= MAX_WORDS
    vocabulary = Vocabulary({"rose": 1}, 64)
    for word in found:
        assert 1 <= len(word) <= MAX_LETTERS
        assert vocabulary.number(word) == (1 if word == "rose" else 0)
        assert all(0 <= gram < 64 for gram in vocabulary.grams(word))
        assert vocabulary.grams(word)


def test_grams_are_hashed_as_fnv_1a_is_defined() -> None:
    # "<a>" by the definition, worked out by hand: offset basis 2166136261, prime 16777619.
    value = 2166136261
    for byte in b"<a>":
        value = (value ^ byte) * 16777619 % 2**32
    assert grams("a", 2**32) == (value,)


def test_words_that_look_alike_share_grams() -> None:
    rose, roses, piano = (set(grams(word, 2**32)) for word in ("rose", "roses", "piano"))
    assert len(rose & roses) >= len(rose) / 2
    assert not rose & piano
