"""Guessed tokens: where they come from, when they are worth it, and that they change nothing."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_runner.engine.text.batch import TextBatch
from headrace_runner.engine.text.drafts import Cost, Lookup, Worth
from headrace_runner.engine.text.layouts import choose_layout
from headrace_runner.engine.text.rows import Drawn, NewRow
from headrace_runner.engine.text.sampling import SamplingParams
from tests.unit.engine.tiny import GREEDY, alone

REPEATED = [5, 9, 13, 2, 77, 140, 31, 8] * 6
"""A prompt in which every run of three tokens has stood before."""


def test_what_followed_last_is_guessed() -> None:
    lookup = Lookup([1, 2, 3, 4, 9, 1, 2, 3, 7, 8, 1, 2, 3])
    assert lookup.guess(2) == [7, 8]
    assert lookup.guess(5) == [7, 8, 1, 2, 3]
    lookup.add(6)
    assert lookup.guess(3) == []
    assert len(lookup) == 14


def test_a_text_that_repeats_itself_is_guessed_on_and_on() -> None:
    assert Lookup([4, 5, 4, 5, 4, 5]).guess(6) == [4, 5, 4, 5, 4, 5]


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3]])
def test_the_end_of_a_new_text_is_not_guessed(tokens: list[int]) -> None:
    assert Lookup(tokens).guess(4) == []


def worth_after(right: int, guessed: int, *, extra: float) -> int:
    """How many tokens are guessed after twenty guesses like these; `extra`: what one costs."""
    cost = Cost()
    worth = Worth(cost)
    cost.took(0, 1.0)
    for _ in range(20):
        cost.took(guessed, 1.0 + extra * guessed)
        worth.verified(guessed, right)
    return worth.count()


def test_many_are_guessed_where_all_are_right_and_cheap() -> None:
    assert worth_after(4, 4, extra=0.02) == 8


def test_none_are_guessed_where_all_are_wrong() -> None:
    assert worth_after(0, 4, extra=0.02) == 0


def test_none_are_guessed_where_each_costs_as_much_as_a_step() -> None:
    assert worth_after(4, 4, extra=1.0) == 0


def test_a_guess_is_tried_again_after_a_while() -> None:
    cost = Cost()
    worth = Worth(cost)
    cost.took(0, 1.0)
    for _ in range(20):
        worth.verified(4, 0)
    counts = [worth.count() for _ in range(70)]
    assert set(counts) == {0, 1}
    assert 1 <= counts.count(1) <= 3


class Guessing(TextBatch):
    """Guesses four tokens in every step, and counts the steps."""

    steps = 0

    def step(self, *, prompts: bool = True) -> Any:
        self.steps += 1
        for row in self._rows.values():
            if row.drafting is not None:
                row.drafting.worth.count = lambda: 4  # type: ignore[method-assign]
        return super().step(prompts=prompts)


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        SamplingParams(seed=3, temperature=0.5),
        SamplingParams(seed=4, temperature=0.9, top_p=0.8, top_k=30),
        SamplingParams(temperature=0.0, logit_bias=tuple((t, 30.0) for t in (5, 9, 13))),
        SamplingParams(temperature=0.0, repetition_penalty=1.3),
    ],
    ids=["greedy", "sampled", "truncated", "biased", "penalised"],
)
def test_guesses_change_no_token(model: Any, sampling: SamplingParams) -> None:
    layout = choose_layout(model, on_cpu=True, prefix_bytes=0)
    batch = Guessing(layout, prefill_chunk=16, ahead=False, drafts=True)
    batch.add(REPEATED, [NewRow(1, sampling, 2)])
    drawn: list[Drawn] = []
    while len(drawn) < 60:
        drawn += batch.step()[1]
    assert [draw.token for draw in drawn][:60] == alone(model, REPEATED, sampling, 60)
    assert all(draw.logprobs is not None and len(draw.logprobs.top) == 2 for draw in drawn)


def test_right_guesses_save_steps(model: Any) -> None:
    # The bias leaves one token, which repeats: every guess of it is right.
    sampling = SamplingParams(temperature=0.0, logit_bias=((7, 1000.0),))
    layout = choose_layout(model, on_cpu=True, prefix_bytes=0)
    batch = Guessing(layout, prefill_chunk=16, ahead=False, drafts=True)
    batch.add([1, 2], [NewRow(1, sampling)])
    drawn: list[Drawn] = []
    while len(drawn) < 100:
        drawn += batch.step()[1]
    assert {draw.token for draw in drawn} == {7}
    assert batch.steps < 35
