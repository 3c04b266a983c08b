"""The small pure parts: memory, pace, and the families there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ModelCorrupt
from headrace_runner.engine.image.memory import images_that_fit, needed, remedy, smaller
from headrace_runner.engine.image.pace import Pace
from headrace_runner.models import families
from headrace_runner.models.pipeline import Drawing, smallest_drawing
from tests.painter import TRAITS, save_painter
from tests.unit.image.workers import drawing

sides = st.integers(1, 16).map(lambda n: 16 * n)


def working(width: int, height: int, count: int, inputs: int) -> int:
    """Not in proportion to the pixels alone."""
    return 1000 + count * (1 + inputs) * (width * height * 3 + (width * height) ** 2 // 1000)


def sized(width: int, height: int, inputs: int) -> Drawing:
    pixels = (np.zeros((height, width, 3), np.uint8),) * inputs
    return replace(drawing(), width=width, height=height, input_images=pixels)


inputs = st.integers(0, 2)


@given(st.integers(0, 2_000_000), st.integers(1, 20), inputs)
def test_as_many_fit_as_there_is_memory_for(free: int, most: int, inputs: int) -> None:
    wanted = sized(32, 32, inputs)
    count = images_that_fit(wanted, most, working, free)
    assert count == sum(working(32, 32, n, inputs) <= free for n in range(1, most + 1))
    assert needed(wanted, working) == working(32, 32, 1, inputs)


@given(sides, sides, st.integers(0, 3_000_000), inputs)
def test_a_smaller_size_can_be_drawn_and_no_larger_one_of_its_shape(
    width: int, height: int, free: int, inputs: int
) -> None:
    found = smaller(sized(width, height, inputs), TRAITS, working, free)
    candidates = [
        (max(16, side * width // longer // 16 * 16), max(16, side * height // longer // 16 * 16))
        for longer in [max(width, height)]
        for side in range(16, longer, 16)
    ]
    fitting = [size for size in candidates if working(*size, 1, inputs) <= free]
    assert found == (max(fitting) if fitting else None)


def test_what_to_do_is_said() -> None:
    assert "64x32" in remedy((64, 32))
    assert "more memory" in remedy(None)


def test_time_is_learnt_by_phase() -> None:
    pace = Pace()
    assert pace.rest(drawing(), 1) is None
    pace.stepped(2 * 32 * 32, 0.2)
    assert pace.rest(drawing(steps=10), 1) == pytest.approx(1.0)
    pace.encoded(2, 0.4)
    pace.decoded(32 * 32, 0.5)
    assert pace.rest(drawing(steps=10), 2) == pytest.approx(2 * (1.0 + 0.2 + 0.5))
    assert pace.rest(drawing(steps=10), 1, steps=4, encoded=True) == pytest.approx(0.4 + 0.5)
    before = pace.rest(drawing(steps=10), 1)
    for _ in range(50):
        pace.stepped(32 * 32, 1.0)
    after = pace.rest(drawing(steps=10), 1)
    assert before is not None
    assert after == pytest.approx(10.0 + 0.2 + 0.5, rel=0.01), "what is recent counts"


def test_the_smallest_drawing_is_one_that_the_model_takes() -> None:
    odd = replace(TRAITS, min_size=20, size_step=16)
    assert (smallest_drawing(odd).width, smallest_drawing(odd).steps) == (32, 1)


def test_the_families_of_this_version_can_be_imported(tmp_path: Path) -> None:
    assert families.find(tmp_path) is None
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert families.find(tmp_path) is None


def test_a_family_is_found_by_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "FAMILIES", ("tests.painter:FAMILY",))
    assert families.find(save_painter(tmp_path / "model")) is not None
    assert families.find(tmp_path) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelCorrupt):
        families.find(tmp_path)
