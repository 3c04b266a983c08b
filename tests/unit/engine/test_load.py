"""How a model is loaded for the device at hand."""

from __future__ import annotations

import pytest

from headrace_runner.models.load import cpu_prefill_chunk


@pytest.mark.parametrize(
    ("parameters", "float32", "stored"),
    [(10_000_000, 512, 150), (135_000_000, 185, 11), (1_000_000_000, 25, 8), (7_000_000_000, 8, 8)],
)
def test_a_chunk_of_prefill_takes_a_cpu_about_a_second(
    parameters: int, float32: int, stored: int
) -> None:
    assert cpu_prefill_chunk(4 * parameters, "float32") == float32
    assert cpu_prefill_chunk(parameters // 2, "stored") == stored
