"""Values are counted by their class, as OpenTelemetry counts them."""

from __future__ import annotations

from headrace.telemetry.names import HistogramSpec
from headrace_runner.engine.tally import Tally

SPEC = HistogramSpec("test.sizes", "Sizes.", (1.0, 2.0, 4.0), "{row}")


def test_a_value_on_a_bound_is_in_the_class_below_it() -> None:
    tally = Tally(SPEC)
    for value in (0.5, 1, 2, 3, 4, 5, 100):
        tally.add(value)
    read = tally.read()
    assert read.bounds == (1.0, 2.0, 4.0)
    assert read.counts == (2, 1, 2, 2)
    assert read.sum == 115.5


def test_a_reading_stays_as_it_is() -> None:
    tally = Tally(SPEC)
    before = tally.read()
    tally.add(1)
    assert (before.counts, before.sum) == ((0, 0, 0, 0), 0.0)
