"""The prompts: enough, different from their first word on, and alike in length."""

import pytest

from tests.bench.prompts import MAX_PROMPTS, prompts


def test_no_two_begin_alike() -> None:
    texts = prompts(MAX_PROMPTS)
    assert len({text.split()[0] for text in texts}) == MAX_PROMPTS


def test_lengths_are_similar() -> None:
    lengths = [len(text.split()) for text in prompts(MAX_PROMPTS)]
    assert max(lengths) - min(lengths) <= 10


def test_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match=str(MAX_PROMPTS)):
        prompts(MAX_PROMPTS + 1)
