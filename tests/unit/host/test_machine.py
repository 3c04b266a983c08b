"""The description of this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headrace.host import machine


def test_describe_fits_this_machine() -> None:
    found = machine.describe()
    assert 1 <= found.cpus <= (os.cpu_count() or 1)
    assert 0 < found.memory_available <= found.memory_total
    assert found.device in ("metal", "cuda", "cpu")


def test_describe_takes_the_device_it_is_given() -> None:
    assert machine.describe("cpu").device == "cpu"


@pytest.mark.parametrize(
    ("text", "version"), [("14.5", (14, 5)), ("2.36", (2, 36)), ("15.0b1", (15,)), ("", ())]
)
def test_parse_version(text: str, version: tuple[int, ...]) -> None:
    assert machine.parse_version(text) == version


def test_cuda_wheels_are_found_where_they_are_unpacked(tmp_path: Path) -> None:
    for folder in ("nvidia/cublas/lib", "nvidia/cuda_runtime/include"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "nvidia/cuda_runtime/include/cuda_runtime.h").touch()
    libraries, home = machine._cuda_wheels([str(tmp_path)])
    assert libraries == (tmp_path / "nvidia/cublas/lib",)
    assert home == tmp_path / "nvidia/cuda_runtime"
