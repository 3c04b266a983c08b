"""What the bench of images makes of its figures."""

from __future__ import annotations

from tests.bench.images import Figures, Found, outcome


def test_a_path_that_takes_too_much_is_a_failure() -> None:
    good = Figures(1, loop=[2.0, 2.0], path=[1.96, 1.94])
    bad = Figures(16, loop=[10.0, 10.0, 10.0], path=[9.0, 9.4, 9.6])
    assert outcome(Found([good], previews=[0.1, 0.2])).failures == ()
    (failure,) = outcome(Found([good, bad])).failures
    assert failure == "images/s at 16 clients: 0.940 (0.900–0.960) of the loop, aim ≥ 0.95"
    assert outcome(Found([Figures(1)])).failures, "nothing measured is nothing reached"
