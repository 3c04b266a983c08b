"""What is published of the kernels: it is built as the workflow builds it, and used without this
repository."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from scripts.wheel import GLIBC

ROOT = Path(__file__).resolve().parents[2]
MACHINE = platform.machine()
MULTIPLIES = """
import mlx.core as mx
import headrace_kernels as kernels

weight = mx.random.normal((64, 128))
parts = mx.quantize(weight, group_size=32, bits=4)
layout = kernels.layout_of(*parts, group_size=32, bits=4)
x = mx.random.normal((3, 128))
found = kernels.multiply(x, kernels.pack(*parts, layout), layout)
wanted = x @ mx.dequantize(*parts, group_size=32, bits=4).T
print(float(mx.linalg.norm(found - wanted) / mx.linalg.norm(wanted)))
"""
# AVX and what came later have wider registers, and their own names for instructions on narrow ones.
AVX = re.compile(r"%[yz]mm|\tv[a-z0-9]+ +.*%xmm")

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernels are for Linux")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel of it."""
    if not shutil.which("c++"):
        pytest.skip("there is no C++ compiler")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, ROOT / "scripts" / "wheel.py", folder], check=True)
    return folder


@linux
@pytest.mark.slow
@pytest.mark.toolchain
@pytest.mark.timeout(900)
def test_the_wheel_has_what_it_needs_and_no_more(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    (sdist,) = built.glob("*.tar.gz")
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    text = (ROOT / "kernels" / "pyproject.toml").read_text(encoding="utf-8")
    version = tomllib.loads(text)["project"]["version"]
    assert wheel.name == (f"headrace_kernels-{version}-{python}-{python}-{GLIBC}_{MACHINE}.whl"), (
        "not for what MLX's own wheels are for"
    )
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if not name.endswith("/")}
        about = file.read(f"headrace_kernels-{version}.dist-info/METADATA").decode()
    library = {name for name in names if name.endswith(".so")}
    assert len(library) == 1, "MLX's library, or another one, is in the wheel"
    assert names - library == {
        *(f"headrace_kernels/{name}" for name in ("__init__.py", "__main__.py", "_ext.pyi")),
        "headrace_kernels/py.typed",
        *(
            f"headrace_kernels-{version}.dist-info/{name}"
            for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")
        ),
    }
    assert wheel.stat().st_size < 1_000_000
    assert f"Requires-Dist: mlx=={metadata.version('mlx')}\n" in about
    assert "License-Expression: Apache-2.0\n" in about
    with tarfile.open(sdist) as files:
        sources = {name.partition("/")[2] for name in files.getnames()}
    for path in (ROOT / "kernels" / "src").iterdir():
        assert f"src/{path.name}" in sources
    assert not any(name.endswith((".so", ".o")) for name in sources)


@linux
@pytest.mark.slow
@pytest.mark.toolchain
@pytest.mark.timeout(900)
def test_the_wheel_works_beside_mlx_of_pypi_alone(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    python = tmp_path / "environment" / "bin" / "python"
    mlx = f"mlx[cpu]=={metadata.version('mlx')}"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel, mlx], check=True)
    environ = {name: value for name, value in os.environ.items() if name != "HEADRACE_KERNELS"}

    done = subprocess.run(
        [python, "-c", MULTIPLIES],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 0.02


@linux
@pytest.mark.toolchain
def test_wheels_are_for_what_those_of_mlx_are_for() -> None:
    tags = metadata.distribution("mlx").read_text("WHEEL") or ""

    assert f"{GLIBC}_{MACHINE}\n" in tags


@pytest.mark.skipif(MACHINE != "x86_64", reason="other CPUs have no such instructions")
@pytest.mark.toolchain
def test_instructions_that_not_all_cpus_have_stay_in_their_paths() -> None:
    """Else a wheel that one CPU built would end on another with an illegal instruction."""
    folder = ROOT / "build" / "kernels" / str(sys.implementation.cache_tag)
    objects = {path.name.partition(".")[0]: path for path in folder.glob("**/_ext.dir/src/*.o")}
    if not objects or not shutil.which("objdump"):
        pytest.skip("nothing is built, or there is no objdump: make kernels")
    paths = {name for name in objects if name.startswith("path_")} - {"path_portable"}
    assert paths >= {"path_avx2", "path_avx512vnni"}
    for name, path in objects.items():
        code = subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", path],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert bool(AVX.search(code)) is (name in paths), name
    for name in paths:
        # A weak symbol may stand for what other files have by that name as well.
        symbols = subprocess.run(
            ["nm", "--defined-only", "--demangle", objects[name]],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert not re.findall(r"^\w+ [WVu] .*$", symbols, re.MULTILINE), name


def test_the_workflow_builds_what_is_tested_here() -> None:
    text = (ROOT / ".github" / "workflows" / "wheels.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]

    assert any(step.get("run") == "python scripts/wheel.py dist" for step in steps)
    for step in steps:
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", step["uses"]), "not pinned"
    for job in ("build", "try"):
        matrix = jobs[job]["strategy"]["matrix"]
        assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
        assert {each["machine"] for each in matrix["cpu"]} == {"x86_64", "aarch64"}
    # Only what has been tried is published, by a tag, with a token that is made for that one job.
    assert jobs["publish"]["needs"] == ["try"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "refs/tags/kernels-v" in jobs["publish"]["if"]
