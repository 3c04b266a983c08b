"""What the bench of the controller's hop says of what it found."""

from collections.abc import Sequence

from tests.bench.hop import Figures, outcome


def ways(
    *, ours: float = 95.0, first: float = 0.0029, resident: Sequence[int] = (100, 104)
) -> list[Figures]:
    """With two rounds each; of the controller as it is said."""
    return [
        Figures(
            "runner alone", [200.0, 210.0], [1e-5, 1e-5], [1e-3, 1e-3], [0.002, 0.002], [40, 40]
        ),
        Figures(
            "bare relay", [100.0, 100.0], [1e-5, 1e-5], [1e-3, 1e-3], [0.0025, 0.0025], [40, 40]
        ),
        Figures(
            "controller", [ours, ours], [1e-5, 1e-5], [1e-3, 1e-3], [first, first], [*resident]
        ),
    ]


def test_all_is_well() -> None:
    assert outcome(ways()).failures == []


def test_each_aim_can_be_missed() -> None:
    (slow,) = outcome(ways(ours=89.0)).failures
    assert slow == "messages/s, controller / bare relay: 0.890, aim ≥ 0.9"
    (late,) = outcome(ways(first=0.0031)).failures
    assert late == "TTFT p50 ms, controller − runner alone: 1.10, aim < 1.0"
    (grown,) = outcome(ways(resident=(100, 103, 106))).failures
    assert grown == "controller's memory, last round / first: 1.060, aim ≤ 1.05"
