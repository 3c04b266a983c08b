"""How much of the prompts is computed between steps, on a clock of the tests' own."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runner.engine.text.pace import BURST, SHARE, START, Pace, shares
from tests.examples import examples

LEAST = 1
"""Tokens that are computed in any case."""
QUIET = 10_000
"""Steps without a prompt, in all: of the shortest, some of its stretches."""


class Machine:
    """Costs, in seconds, and what a long prefill between steps made of them."""

    def __init__(
        self, most: int, *, token: float, growth: float, step: float, noise: float, seed: int
    ) -> None:
        self._token, self._growth, self._step, self._noise = token, growth, step, noise
        self._random = random.Random(seed)
        self._pace = Pace(most)
        self._pace.prefilled(1, token, decoding=False)
        self._quiet = QUIET
        self.waits: list[float] = []
        self.steps: list[float] = []

    def prefill(self, tokens: int, *, idle: float = 0.0) -> None:
        """A prompt of so many tokens, a step of the other rows after each part of it.

        After so large a share of the parts it is quiet for so long that all is saved up again, as
        long as there is some of `QUIET` left.
        """
        done = 0
        while done < tokens:
            wanted = self._pace.tokens(decoding=True)
            assert wanted > 0
            count = min(wanted, tokens - done)
            # A token attends to all that were before, so it takes longer the later it comes.
            each = self._token * (1 + self._growth * done / tokens) * self._noisy()
            done += count
            self._pace.prefilled(count, count * each, decoding=True)
            self.waits.append(count * each)
            self._decode(self._step * self._noisy())
            if self._random.random() < idle and self._quiet > 0:
                steps = int(BURST / self._step) + 1
                self._quiet -= steps
                for _ in range(steps):
                    self._pace.decoded(self._step)
                self.steps[-1] += steps * self._step

    def _decode(self, seconds: float) -> None:
        self._pace.decoded(seconds)
        self.steps.append(seconds)

    def _noisy(self) -> float:
        return self._random.uniform(1 / (1 + self._noise), 1 + self._noise)

    def overdrawn(self) -> float:
        """By how much prefill exceeded its share at most, over all stretches of time."""
        drawn = [wait - SHARE * step for wait, step in zip(self.waits, self.steps, strict=True)]
        sums = [0.0, *accumulate(drawn)]
        lowest = accumulate(sums, min)
        return max(value - low for value, low in zip(sums, lowest, strict=True))


@settings(deadline=None, max_examples=examples(60))
@given(
    most=st.integers(LEAST, 2048),
    least_share=st.floats(0.01, 0.5),
    growth=st.floats(0, 20),
    noise=st.floats(0, 1),
    idle=st.sampled_from([0, 0.01, 0.2]),
    seed=st.integers(0, 2**32),
)
def test_over_any_stretch_streams_keep_their_pace_but_for_a_burst(
    most: int, least_share: float, growth: float, noise: float, idle: float, seed: int
) -> None:
    # The least chunk fits into its share of the shortest step even where tokens are dearest.
    token = 0.0002
    step = LEAST * token * (1 + growth) * (1 + noise) ** 2 / least_share / SHARE
    machine = Machine(most, token=token, growth=growth, step=step, noise=noise, seed=seed)
    machine.prefill(20_000, idle=idle)
    # What was saved up, and one chunk that took longer than those before it let expect; a step's
    # own time is known from the average of those before it.
    bound = 1.1 * (BURST + max(machine.waits))
    assert machine.overdrawn() <= bound + 1e-9
    assert sum(machine.waits) <= SHARE * sum(machine.steps) + bound


@settings(deadline=None)
@given(
    token=st.floats(0.0001, 0.01),
    growth=st.floats(0, 20),
    step=st.floats(0.005, 0.5),
    seed=st.integers(0, 2**32),
)
def test_nobody_waits_longer_than_a_burst(
    token: float, growth: float, step: float, seed: int
) -> None:
    machine = Machine(100_000, token=token, growth=growth, step=step, noise=0.0, seed=seed)
    # So long that one chunk's tokens take hardly longer than those of the chunk before.
    machine.prefill(int(200 / token), idle=0.3)
    least = LEAST * token * (1 + growth)
    assert BURST / 2 < max(machine.waits) <= max(1.2 * BURST, least)


@pytest.mark.parametrize("growth", [0.0, 10.0])
def test_a_long_prefill_takes_all_of_its_share(growth: float) -> None:
    machine = Machine(512, token=0.001, growth=growth, step=0.05, noise=0.0, seed=0)
    machine.prefill(50_000)
    # But for the burst at first, and the end, which there was too little left for.
    assert sum(machine.waits[1:-1]) / sum(machine.steps[1:-1]) == pytest.approx(SHARE, rel=0.1)


def test_a_prompt_gets_on_beside_the_fastest_of_steps() -> None:
    machine = Machine(10_000, token=0.001, growth=0, step=1e-9, noise=0, seed=0)
    machine.prefill(1000 + 100 * LEAST)
    assert len(machine.waits) == 101


def test_nobody_waits_for_nobody() -> None:
    pace = Pace(512)
    pace.prefilled(100, 0.1, decoding=False)
    for _ in range(5):
        assert pace.tokens(decoding=False) == 512
        pace.prefilled(100, 0.1, decoding=True)
    # Whoever comes while prompts are computed waits for one burst even so.
    assert Pace(512).tokens(decoding=False) == 512
    pace = Pace(5000)
    pace.prefilled(100, 0.1, decoding=False)
    assert pace.tokens(decoding=False) == pytest.approx(1000 * BURST, abs=1)


def test_what_was_not_used_is_saved_up_to_one_burst() -> None:
    pace = Pace(5000)
    pace.prefilled(1000, 1.0, decoding=False)
    for _ in range(1000):
        pace.decoded(0.05)
    assert pace.tokens(decoding=True) == pytest.approx(1000 * BURST, abs=1)
    pace.prefilled(1000, BURST, decoding=True)
    assert pace.tokens(decoding=True) == LEAST
    pace.decoded(0.05)
    assert pace.tokens(decoding=True) == pytest.approx(1000 * SHARE * 0.05, abs=1)


def test_a_part_of_the_burst_leaves_the_rest() -> None:
    pace = Pace(5000)
    pace.prefilled(1000, 1.0, decoding=False)
    pace.prefilled(300, 0.3, decoding=True)
    assert pace.tokens(decoding=True) == pytest.approx(1000 * (BURST - 0.3), abs=1)


@pytest.mark.parametrize("most", [1, 4, LEAST, 9])
def test_no_more_is_computed_at_once_than_the_most(most: int) -> None:
    for decoding in (False, True):
        pace = Pace(most)
        assert pace.tokens(decoding=decoding) <= most
        pace.prefilled(1, 0.01, decoding=decoding)
        pace.decoded(1e6)
        assert pace.tokens(decoding=decoding) == most
        pace.prefilled(1, 1e6, decoding=True)
        assert 0 < pace.tokens(decoding=decoding) <= most


@given(st.lists(st.integers(0, 5000)), st.integers(0, 4000))
def test_shares_give_out_all_that_can_be_used(remaining: list[int], tokens: int) -> None:
    given = shares(remaining, tokens)
    assert sum(given) == min(tokens, sum(remaining))
    assert all(0 <= some <= wanted for some, wanted in zip(given, remaining, strict=True))


@given(st.lists(st.integers(1, 5000), min_size=1), st.integers(1, 4000))
def test_the_first_gets_half_and_the_shortest_what_is_left(
    remaining: list[int], tokens: int
) -> None:
    given = shares(remaining, tokens)
    half = -(-tokens // 2)
    assert given[0] >= min(remaining[0], half)
    others = sorted(range(1, len(remaining)), key=lambda place: (remaining[place], place))
    filled = [place for place in others if given[place] == remaining[place]]
    # One after another is done, the next gets what there is, and those behind it nothing.
    assert filled == others[: len(filled)]
    assert not any(given[place] for place in others[len(filled) + 1 :])
    if given[0] > half:
        assert filled == others


def test_shares_by_example() -> None:
    assert shares([], 100) == []
    assert shares([10], 100) == [10]
    assert shares([1000], 100) == [100]
    assert shares([1000, 900, 30], 100) == [50, 20, 30]
    assert shares([1000, 10, 30], 100) == [60, 10, 30]
    assert shares([20, 900, 30], 100) == [20, 50, 30]
    assert shares([1000, 30], 1) == [1, 0]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=8),
    st.integers(16, 200),
    st.randoms(use_true_random=False),
)
def test_nobody_starves(first: list[int], tokens: int, source: random.Random) -> None:
    # However many short ones come behind them, each of those in line is done in the time that it
    # and all before it take at half of the pace.
    line = list(enumerate(first))
    done_at: dict[int, int] = {}
    turn = 0
    while len(done_at) < len(first):
        turn += 1
        line += [(-1, source.randint(1, tokens)) for _ in range(3)]
        given = shares([left for _, left in line], tokens)
        line = [(who, left - some) for (who, left), some in zip(line, given, strict=True)]
        done_at |= {who: turn for who, left in line if not left and who >= 0}
        line = [(who, left) for who, left in line if left]
    for who, before in enumerate(accumulate(first)):
        assert done_at[who] <= 2 * before / tokens + who + 1


def test_prompts_that_are_soon_done_go_first() -> None:
    pace = Pace(512)
    assert not pace.gathers(1, 0.0)  # Nothing is known yet.
    pace.prefilled(100, 1.0, decoding=False)
    soon = int(START / 0.01)
    assert pace.gathers(soon, 0.0)
    assert not pace.gathers(soon + 1, 0.0)
    assert pace.gathers(soon // 2, START / 2)
    assert not pace.gathers(1, START)


def test_the_time_of_many_tokens_tells_more_than_that_of_few() -> None:
    many, few = Pace(10_000), Pace(10_000)
    for pace, tokens in ((many, 1000), (few, 2)):
        pace.prefilled(16, 16 * 0.005, decoding=False)
        pace.prefilled(tokens, tokens * 0.001, decoding=False)
    assert few.tokens(decoding=False) < BURST / 0.004
    assert many.tokens(decoding=False) > BURST / 0.002
