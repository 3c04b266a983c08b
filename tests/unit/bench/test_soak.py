"""The soak's requests, and what it says of what it found."""

from dataclasses import replace
from itertools import islice

import pytest

from tests.bench.soak import Memory, Order, Report, orders, outcome

MANY = 3000


@pytest.fixture(scope="module")
def many() -> list[Order]:
    return list(islice(orders(100, 2.0), MANY))


def test_the_same_requests_every_time(many: list[Order]) -> None:
    assert list(islice(orders(100, 2.0), MANY)) == many
    assert list(islice(orders(100, 2.0, seed=1), MANY)) != many


def test_lengths_are_mixed_and_bounded(many: list[Order]) -> None:
    prompts = [len(order.prompt) for order in many]
    outputs = [order.max_tokens for order in many]
    assert (min(prompts), max(prompts)) == (5, 150)
    assert (min(outputs), max(outputs)) == (1, 24)
    assert all(0 <= token < 100 for order in many for token in order.prompt)


def test_a_third_is_cancelled_by_time_or_by_output(many: list[Order]) -> None:
    by_time = [order for order in many if order.patience is not None]
    by_output = [order for order in many if order.outputs is not None]
    assert not set(map(id, by_time)) & set(map(id, by_output))
    assert (len(by_time) + len(by_output)) / MANY == pytest.approx(1 / 3, abs=0.03)
    assert min(order.outputs for order in by_output if order.outputs is not None) == 0


def test_some_share_their_first_tokens(many: list[Order]) -> None:
    begins = [order.prompt[:30] for order in many if len(order.prompt) > 60]
    shared = [begin for begin in begins if begins.count(begin) > 10]
    assert len(set(shared)) == 8


def test_growth_of_what_counts_is_a_failure() -> None:
    before = Memory(resident=1000, active=500, cache=10, peak=600, prefixes=50)

    def failures(**after: int) -> list[str]:
        return list(outcome(Report(before, replace(before, **after), 2000, 600, 1.0)).failures)

    assert failures() == []
    # MLX's own reserve and its highest mark may rise: they are shown, and bound nothing.
    assert failures(resident=1050, active=525, cache=99, peak=999) == []
    assert failures(resident=1051) == ["resident memory grew to 1.051 times what it was"]
    assert len(failures(resident=2000, active=526)) == 2
