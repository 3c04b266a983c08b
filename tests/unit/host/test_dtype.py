"""Which type of the weights is chosen."""

from __future__ import annotations

import pytest

from headrace.host.dtype import Dtype, choose_dtype
from headrace.host.machine import Device

GIB = 1 << 30
SMALL = 135_000_000


@pytest.mark.parametrize(
    ("device", "parameters", "stored", "available", "has_blas", "expected"),
    [
        pytest.param("cpu", SMALL, 98_000_000, 8 * GIB, True, "float32", id="small model"),
        pytest.param("cpu", SMALL, 270_000_000, 8 * GIB, True, "float32", id="16 bits"),
        pytest.param("cpu", SMALL, 540_000_000, 8 * GIB, True, "stored", id="float32 already"),
        pytest.param("cpu", SMALL, 98_000_000, 8 * GIB, False, "stored", id="no BLAS"),
        pytest.param("cpu", SMALL, 98_000_000, 8 * SMALL, True, "float32", id="fits exactly"),
        pytest.param("cpu", SMALL, 98_000_000, 8 * SMALL - 1, True, "stored", id="just too big"),
        pytest.param("cpu", 8_000_000_001, 1, 999 * GIB, True, "stored", id="too many parameters"),
        pytest.param("cpu", 0, 98_000_000, 8 * GIB, True, "stored", id="unknown"),
        pytest.param("metal", SMALL, 98_000_000, 8 * GIB, True, "stored", id="Metal"),
        pytest.param("cuda", SMALL, 98_000_000, 8 * GIB, True, "stored", id="CUDA"),
    ],
)
def test_choose_dtype(
    device: Device, parameters: int, stored: int, available: int, has_blas: bool, expected: Dtype
) -> None:
    assert choose_dtype(device, parameters, stored, available, has_blas) == expected


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", "int8"), ("metal", "stored"), ("cuda", "stored")]
)
@pytest.mark.parametrize("has_blas", [True, False])
def test_the_kernels_are_for_a_cpu_with_or_without_a_blas(
    device: Device, expected: Dtype, has_blas: bool
) -> None:
    found = choose_dtype(device, 9 * SMALL, SMALL, SMALL, has_blas, by_kernels=True)
    assert found == expected
