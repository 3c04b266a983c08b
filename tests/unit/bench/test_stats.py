"""The figures of a bench, from arrival times that a reader can check by hand."""

import pytest

from tests.bench.stats import (
    Arrival,
    Spread,
    Trace,
    agreement,
    measure,
    percentile,
    ratio,
    spread,
    waits_over,
    waits_within,
)


def trace(sent: float, *arrivals: tuple[float, float]) -> Trace:
    return Trace(sent, tuple(Arrival(*one) for one in arrivals), prompt_tokens=5, text="")


def test_one_stream() -> None:
    sample = measure([trace(10.0, (11.0, 1), (11.5, 1), (12.0, 2))])
    assert sample.tokens == 4
    assert sample.overall == pytest.approx(4 / 2.0)
    assert sample.decode == pytest.approx(3 / 1.0)
    assert sample.ttft_p50 == sample.ttft_p95 == pytest.approx(1.0)
    assert sample.tpot == pytest.approx(1 / 3)


def test_decode_counts_only_while_all_streams_decode() -> None:
    early = trace(0.0, (1.0, 1), (2.0, 1), (3.0, 1), (4.0, 1))
    late = trace(0.0, (2.0, 1), (3.0, 1), (4.0, 1), (9.0, 1))
    sample = measure([early, late])
    # From 2.0, when the later one begins, to 4.0, when the earlier one ends: two tokens of each.
    assert sample.decode == pytest.approx(4 / 2.0)
    assert sample.overall == pytest.approx(8 / 9.0)
    assert sample.prompt_tokens == 10


def test_no_decode_rate_where_streams_come_one_after_the_other() -> None:
    first = trace(0.0, (1.0, 1), (2.0, 1))
    second = trace(0.0, (3.0, 1), (4.0, 1))
    assert measure([first, second]).decode is None


def test_output_that_comes_all_at_once_has_no_pace() -> None:
    sample = measure([trace(0.0, (2.0, 8))])
    assert sample.overall == pytest.approx(4.0)
    assert sample.decode is None
    assert sample.tpot is None


def test_time_to_first_token_counts_from_each_streams_own_request() -> None:
    sample = measure([trace(0.0, (1.0, 1), (5.0, 1)), trace(2.0, (5.0, 1), (6.0, 1))])
    assert sample.ttft_p50 == pytest.approx(2.0)


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 2.5), (95, 3.85), (100, 4.0)])
def test_percentile(percent: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(expected)


def test_percentile_of_one_value() -> None:
    assert percentile([7.0], 95) == 7.0


def test_spread_leaves_out_what_is_missing() -> None:
    assert spread([3.0, None, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([None]) is None


def test_ratio_is_taken_round_by_round() -> None:
    # Each round is twice the base; a ratio of medians would say so too, one of the extremes not.
    assert ratio([2.0, 20.0, 6.0], [1.0, 10.0, 3.0]) == Spread(2.0, 2.0, 2.0)
    assert ratio([2.0, None], [4.0, 1.0]) == Spread(0.5, 0.5, 0.5)
    assert ratio([None], [1.0]) is None


@pytest.mark.parametrize(
    ("text", "reference", "same"),
    [
        ("Once upon", "Once upon", True),
        (" Once upon", "Once upon a time", True),
        ("caf\N{REPLACEMENT CHARACTER}", "café", True),
        ("Once more", "Once upon", False),
        ("", "Once upon", False),
    ],
)
def test_agreement(text: str, reference: str, same: bool) -> None:
    assert agreement([text], [reference]) == same


@pytest.mark.parametrize(
    ("begin", "end", "within", "over"),
    [
        (1.0, 8.0, [1, 2, 4], [1, 2, 4]),  # all of it
        (1.5, 7.0, [2], [1, 2, 4]),  # cut at both ends
        (5.0, 6.0, [], [4]),  # inside one wait
        (2.0, 4.0, [2], [2]),  # neighbours that only touch do not count
        (8.0, 9.0, [], []),
    ],
)
def test_waits(begin: float, end: float, within: list[float], over: list[float]) -> None:
    times = [1.0, 2.0, 4.0, 8.0]
    assert waits_within(times, begin, end) == within
    assert waits_over(times, begin, end) == over
