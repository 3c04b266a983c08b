"""In which type the weights of a model are loaded, and what is said of it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.host.dtype import Dtype
from headrace.host.kernels import Kernels
from headrace_server.config import ServerConfig
from headrace_server.config.settings import DtypeChoice
from headrace_server.hosting import Hosting
from headrace_server.scheduling import weights
from headrace_server.store import Manifest, Store
from tests.unit.control.fakes import put_manifest
from tests.unit.host.machines import GIB, LINUX_CPU, LINUX_CUDA

KERNELS = Kernels("avx2")
NONE = Kernels(reason="headrace-kernels is not installed")
FOUR = {"quantization": {"bits": 4, "group_size": 32}}
SMALL = 8 << 20


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Of 4 million numbers in 2 MB."""
    put_manifest(tmp_path, "words", "text")
    return replace(Store(tmp_path).get("words"), parameters=4_000_000, tensor_bytes=2_000_000)


class Here:
    """A model with this config.json on a machine."""

    def __init__(self, manifest: Manifest, directory: Path, config: dict[str, Any] | None) -> None:
        self.manifest, self.directory = manifest, directory
        if config is not None:
            (directory / "config.json").write_text(json.dumps(config))

    def dtype(self, asked: DtypeChoice, hosting: Hosting, memory: int = GIB) -> Dtype:
        """The type for a model that was asked for in `asked`; tells what there is to be told."""
        options = ServerConfig(dtype=asked).options("words:latest")
        found = weights.dtype_of(self.manifest, options, self.directory, memory, hosting)
        weights.tell(self.manifest, options, self.directory, memory, hosting, found)
        return found


def hosting(kernels: Kernels, *, has_blas: bool = True, cuda: bool = False) -> Hosting:
    return Hosting(LINUX_CUDA if cuda else LINUX_CPU, {}, has_blas, kernels, problem="")


@pytest.mark.parametrize(
    ("asked", "there", "expected"),
    [
        ("auto", hosting(KERNELS), "int8"),
        ("auto", hosting(KERNELS, has_blas=False), "int8"),
        ("auto", hosting(NONE), "float32"),
        ("auto", hosting(NONE, has_blas=False), "stored"),
        ("int8", hosting(KERNELS), "int8"),
        ("int8", hosting(NONE), "float32"),
        ("float32", hosting(KERNELS), "float32"),
        ("stored", hosting(KERNELS), "stored"),
        ("auto", hosting(Kernels(reason="for a CPU"), cuda=True), "stored"),
    ],
)
def test_the_type(
    asked: DtypeChoice, there: Hosting, expected: Dtype, manifest: Manifest, tmp_path: Path
) -> None:
    assert Here(manifest, tmp_path, FOUR).dtype(asked, there) == expected


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("text", {}, "not quantised to 4 or 8 bits"),
        ("text", {"quantization": {"bits": 6, "group_size": 64}}, "not quantised to 4 or 8 bits"),
        ("text", None, "config.json cannot be read"),
        ("embedding", FOUR, "for text alone"),
    ],
)
def test_what_is_not_for_the_kernels_is_loaded_as_without_them(
    kind: str,
    config: dict[str, Any] | None,
    reason: str,
    manifest: Manifest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = Here(replace(manifest, kind=kind), tmp_path, config)
    assert here.dtype("auto", hosting(KERNELS)) == "float32"
    assert not caplog.records
    assert here.dtype("int8", hosting(KERNELS)) == "float32"
    assert reason in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_kernels_that_were_asked_for_and_are_not_there(
    manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Here(manifest, tmp_path, FOUR).dtype("int8", hosting(NONE))
    assert NONE.reason in caplog.text


def test_a_budget_that_makes_it_slow_is_told(
    manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    here = Here(manifest, tmp_path, FOUR)
    assert here.dtype("auto", hosting(NONE), SMALL) == "stored"
    assert "much slower" in caplog.text
    caplog.clear()
    assert here.dtype("auto", hosting(KERNELS), SMALL) == "int8"
    assert here.dtype("stored", hosting(NONE), SMALL) == "stored"
    assert not caplog.records


def test_the_budget_has_a_say_where_neither_options_nor_kernels_have(
    manifest: Manifest, tmp_path: Path
) -> None:
    def by_budget(asked: DtypeChoice, memory: int, *, has_kernels: bool = False) -> Dtype | None:
        options = ServerConfig(dtype=asked).options("words")
        return weights.by_budget(manifest, options, tmp_path, memory, has_kernels=has_kernels)

    assert (by_budget("auto", GIB), by_budget("auto", SMALL)) == ("float32", "stored")
    assert (by_budget("float32", GIB), by_budget("stored", SMALL)) == (None, None)
    assert by_budget("auto", GIB, has_kernels=True) == "float32"  # Nothing says it is quantised.
    (tmp_path / "config.json").write_text(json.dumps(FOUR))
    assert by_budget("auto", GIB, has_kernels=True) is None
    assert by_budget("auto", GIB) == "float32"
