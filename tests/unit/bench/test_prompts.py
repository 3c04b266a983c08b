"""The prompts: enough, different from their first word on, and alike in length."""

import pytest

from tests.bench.prompts import MAX_PROMPTS, long_text, prompts


def test_no_two_begin_alike() -> None:
    texts = prompts(MAX_PROMPTS)
    assert len({text.split()[0] for text in texts}) == MAX_PROMPTS


def test_lengths_are_similar() -> None:
    lengths = [len(text.split()) for text in prompts(MAX_PROMPTS)]
    assert max(lengths) - min(lengths) <= 10


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("length", [1, 200, 8000])
def test_a_long_text_has_the_length_that_was_asked_for(length: int) -> None:
    assert length <= words(long_text(0, length, words)) < length + 40


def test_long_texts_are_the_same_every_time_and_begin_differently() -> None:
    texts = [long_text(index, 50, words) for index in range(MAX_PROMPTS)]
    assert texts == [long_text(index, 50, words) for index in range(MAX_PROMPTS)]
    assert len({text.split()[0] for text in texts}) == MAX_PROMPTS


def test_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match=str(MAX_PROMPTS)):
        prompts(MAX_PROMPTS + 1)
