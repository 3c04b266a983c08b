"""The paths of other CPUs than this one: compiled for them, and run as far as that can be.

A program (kernels/tests/agree.cpp) computes random problems by every path and compares the results
to the bit. It is built for this machine, and by a cross compiler for aarch64, where QEMU runs it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import pytest

from tests.unit.kernels.matrices import kernels

pytestmark = [pytest.mark.toolchain, pytest.mark.timeout(1200)]

ROOT = Path(__file__).resolve().parents[3]
ROUNDS = 1000
X86 = platform.machine() == "x86_64"


def need(*programs: str) -> None:
    if missing := [each for each in programs if shutil.which(each) is None]:
        pytest.skip(f"needs {', '.join(missing)}")


def build(machine: str, *options: str) -> Path:
    """The folder in which the program was built; what is up to date there stays."""
    folder = ROOT / ".cache" / "kernels" / "agree" / machine
    headers = Path(mx.__file__).parent / "include"
    source = ROOT / "kernels" / "tests"
    configure = ["cmake", f"-S{source}", f"-B{folder}", f"-DMLX_INCLUDE={headers}", *options]
    subprocess.run([*configure, "-DCMAKE_BUILD_TYPE=Release"], check=True)
    subprocess.run(["cmake", "--build", folder, f"-j{os.cpu_count()}"], check=True)
    return folder


def agree(*command: str | Path, rounds: int = ROUNDS, seed: int = 0) -> tuple[list[str], str]:
    """The paths that were compared, and what their results come to."""
    ran = subprocess.run(
        [*command, str(rounds), str(seed)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    paths, digests = ran.stdout.splitlines()
    assert paths.startswith("paths: ")
    return paths.removeprefix("paths: ").split(", "), digests


@pytest.fixture(scope="module")
def here() -> Path:
    need("cmake", "g++")
    return build(platform.machine())


@pytest.fixture(scope="module")
def aarch64() -> Path:
    need("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64-static")
    system = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    return build("aarch64-cross", *system, "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++")


def test_the_paths_of_this_cpu_agree(here: Path) -> None:
    paths, _ = agree(here / "agree", seed=1)
    assert set(kernels.paths()) <= set(paths)
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if X86 and flags and {"avx512vl", "avx512_vnni"} <= set(flags[1].split()):
        assert "avxvnni by EVEX" in paths


def test_aarch64_gives_what_this_cpu_gives(here: Path, aarch64: Path) -> None:
    paths, digests = agree("qemu-aarch64-static", aarch64 / "agree")
    assert paths == ["neon", "portable"]
    assert digests == agree(here / "agree")[1]


def test_aarch64_without_products_of_bytes_takes_the_portable_path(aarch64: Path) -> None:
    older = ["qemu-aarch64-static", "-cpu", "cortex-a53"]
    assert agree(*older, aarch64 / "agree", rounds=20)[0] == ["portable"]


@pytest.mark.skipif(not X86, reason="is of x86-64 alone")
def test_avxvnni_is_compiled_without_avx512(here: Path) -> None:
    """That CPUs have it alone: products by VEX, no register that AVX-512 brought."""
    need("objdump")
    (compiled,) = here.rglob("path_avxvnni.cpp.o")
    said = subprocess.run(["objdump", "-d", compiled], capture_output=True, text=True, check=True)
    products = re.findall(r"^.*\tvpdpbusd .*$", said.stdout.replace("{vex} ", ""), re.MULTILINE)
    assert len(products) > 100
    assert all(re.search(r":\t(c4|c5) ", line) for line in products)
    assert not re.search(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b", said.stdout)
