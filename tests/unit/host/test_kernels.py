"""Whether the kernels are there is found out without being disturbed by them."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from headrace.host.kernels import PACKAGE, cover, find_kernels


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Has `folder` first among where Python finds its packages."""
    return os.environ | {"PYTHONPATH": str(folder)} | variables


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> dict[str, str]:
    """A package of that name which runs `program`."""
    package = folder / "headrace_kernels"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(program)
    monkeypatch.setattr(metadata, "version", lambda name: "0.1.0")
    return environment(folder)


def test_switched_off(tmp_path: Path) -> None:
    found = find_kernels(environment(tmp_path, HEADRACE_KERNELS="off"))
    assert (found.path, found.reason) == ("", "HEADRACE_KERNELS is off")


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert find_kernels({}).reason == "headrace-kernels is not installed"


def test_what_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_kernels(pretend(tmp_path, monkeypatch, "print('avx2 portable')"))
    assert (found.path, found.others, found.reason) == ("avx2", ("portable",), "")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise ImportError('libmlx.so: undefined symbol')", "undefined symbol"),
        ("import os; os.abort()", "ended with -6"),
        ("pass", "does not load"),
    ],
)
def test_what_does_not_load(
    program: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_kernels(pretend(tmp_path, monkeypatch, program))
    assert found.path == ""
    assert reason in found.reason


def test_the_real_one_takes_the_path_that_it_is_told() -> None:
    try:
        metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        pytest.skip("the kernels are not built: make kernels")
    assert find_kernels(environment(Path(), HEADRACE_KERNELS="portable")).path == "portable"
    assert "no path sse" in find_kernels(environment(Path(), HEADRACE_KERNELS="sse")).reason


FOUR = {"bits": 4, "group_size": 32}
SIX = {"bits": 6, "group_size": 64}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (None, False),
        (FOUR, True),
        ({"bits": 8, "group_size": 128, "mode": "affine"}, True),
        ({"bits": 4, "group_size": 32, "mode": "mxfp4"}, False),
        ({"bits": 4, "group_size": 16}, False),
        (SIX, False),
        (FOUR | {"lm_head": {"bits": 8, "group_size": 64}, "model.layers.0.mlp.gate": False}, True),
        (FOUR | {"lm_head": SIX}, False),
    ],
)
def test_what_they_cover(quantization: dict[str, Any] | None, expected: bool) -> None:
    assert cover({"quantization": quantization}) == expected
    assert not cover({})
