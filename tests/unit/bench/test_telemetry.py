"""Rounds are compared with those that ran beside them, and what costs too much is told."""

from __future__ import annotations

import pytest

from tests.bench.telemetry import OFF_BOUND, Round, idle_share, outcome, rows

OFF = [Round(100.0, 5.0), Round(50.0, 10.0), Round(80.0, 6.0)]


def scaled(rate: float, cpu: float) -> list[Round]:
    return [Round(each.rate * rate, each.cpu * cpu) for each in OFF]


def test_ratios_are_those_of_each_round() -> None:
    _, on = rows({"off": OFF, "on": scaled(0.5, 3.0)})
    assert on.rate_to_off is not None
    assert on.cpu_to_off is not None
    assert (on.rate_to_off.low, on.rate_to_off.high) == (0.5, 0.5)
    assert on.cpu_to_off.median == pytest.approx(3.0)


def test_what_costs_too_much_is_a_failure() -> None:
    cheap = {"off": OFF, "a": scaled(0.985, 1.0)}
    assert outcome(cheap, idle=0.0001).failures == []
    dear = {**cheap, "b": scaled(0.97, 1.0)}
    assert len(outcome(dear, idle=2 * OFF_BOUND).failures) == 2


def test_calls_of_telemetry_that_is_off_cost_little() -> None:
    share = idle_share(32, 64, [Round(100.0, 5.0)])
    assert 0 < share < 0.05
