"""Whether there is memory to draw, and what to ask for where there is not. Pure, in bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from headrace_runner.models.pipeline import Drawing, ImageTraits

WorkingBytes = Callable[[int, int, int], int]
"""Memory beside the weights while so many images of a width and height are drawn together."""


def images_that_fit(drawing: Drawing, most: int, working: WorkingBytes, free: int) -> int:
    """How many drawings of this size, `most` at most, can be drawn together; 0: not even one."""
    counts = range(1, most + 1)
    return bisect_right(counts, free, key=lambda n: working(drawing.width, drawing.height, n))


def smaller(
    width: int, height: int, traits: ImageTraits, working: WorkingBytes, free: int
) -> tuple[int, int] | None:
    """The largest size of nearly the same shape that can be drawn; None where there is none."""
    step, least = traits.size_step, traits.min_size
    longer = max(width, height)

    def scaled(side: int) -> tuple[int, int]:
        sizes = (value * side // longer // step * step for value in (width, height))
        wide, high = (max(size, -(-least // step) * step) for size in sizes)
        return wide, high

    sides = range(step, longer, step)
    fits = bisect_right(sides, free, key=lambda side: working(*scaled(side), 1))
    return scaled(sides[fits - 1]) if fits else None


def remedy(size: tuple[int, int] | None) -> str:
    """What to do about it, in words."""
    if size is None:
        return "no size of this model fits; give the runner more memory"
    return f"ask for {size[0]}x{size[1]} or smaller"
