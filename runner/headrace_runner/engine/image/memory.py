"""Whether there is memory to draw, and what to ask for where there is not. Pure, in bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from headrace.types import ImageTraits
from headrace_runner.models.pipeline import Drawing

WorkingBytes = Callable[[int, int, int, int], int]
"""Memory beside the weights, by width, height, images that are drawn together, and input images of
each."""


def images_that_fit(drawing: Drawing, most: int, working: WorkingBytes, free: int) -> int:
    """How many drawings of this size, `most` at most, can be drawn together; 0: not even one."""
    size, inputs = (drawing.width, drawing.height), len(drawing.input_images)
    return bisect_right(range(1, most + 1), free, key=lambda n: working(*size, n, inputs))


def needed(drawing: Drawing, working: WorkingBytes) -> int:
    """What a drawing takes by itself."""
    return working(drawing.width, drawing.height, 1, len(drawing.input_images))


def smaller(
    drawing: Drawing, traits: ImageTraits, working: WorkingBytes, free: int
) -> tuple[int, int] | None:
    """The largest size of nearly the same shape that can be drawn; None where there is none."""
    step, least = traits.size_step, traits.min_size
    width, height, inputs = drawing.width, drawing.height, len(drawing.input_images)
    longer = max(width, height)

    def scaled(side: int) -> tuple[int, int]:
        sizes = (value * side // longer // step * step for value in (width, height))
        wide, high = (max(size, -(-least // step) * step) for size in sizes)
        return wide, high

    sides = range(step, longer, step)
    fits = bisect_right(sides, free, key=lambda side: working(*scaled(side), 1, inputs))
    return scaled(sides[fits - 1]) if fits else None


def remedy(size: tuple[int, int] | None) -> str:
    """What to do about it, in words."""
    if size is None:
        return "no size of this model fits; give the runner more memory"
    return f"ask for {size[0]}x{size[1]} or smaller"
