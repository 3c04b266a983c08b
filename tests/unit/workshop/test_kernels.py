"""scripts/kernels.py builds the kernels where it can, once, and else says in a line why not.

It runs in an environment of its own, on a copy whose package has nothing to compile.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PURELIB = Path(sysconfig.get_path("purelib"))
MLX = ("mlx",)
TOOLS = ("scikit-build-core", "nanobind", "cmake", "ninja")
ON_THE_WAY = ("packaging", "pathspec")
SAYS = 'print("fast slow")\n'

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernels are for Linux")


class Checkout:
    """What the script needs of the repository, and an environment with a few packages."""

    def __init__(self, folder: Path, *packages: str) -> None:
        self.root = folder / "checkout"
        (self.root / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "scripts" / "kernels.py", self.root / "scripts")
        shutil.copy(ROOT / "constraints.txt", self.root)
        package = self.root / "kernels" / "headrace_kernels"
        package.mkdir(parents=True)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / "kernels" / name, package.parent)
        self.cmake = package.parent / "CMakeLists.txt"
        self.cmake.write_text("cmake_minimum_required(VERSION 3.25)\nproject(kernels NONE)\n")
        (package / "__init__.py").write_text("")
        self.main = package / "__main__.py"
        self.main.write_text(SAYS)
        self.environment = folder / "environment"
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", self.environment], check=True
        )
        found = next(self.environment.glob("lib/python*/site-packages"))
        self.site_packages = found
        for name in ("pip", *packages):
            self._link(name)

    def _link(self, name: str) -> None:
        """As if it were installed."""
        files = metadata.distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            (self.site_packages / top).symlink_to(PURELIB / top)
        for program in (file for file in files if file.parts[-2:-1] == ("bin",)):
            source = Path(str(metadata.distribution(name).locate_file(program))).resolve()
            if ".." in program.parts:
                (self.environment / "bin" / program.name).symlink_to(source)

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "HEADRACE_"))}
        # No configuration of this machine's may name a place to fetch packages from.
        plain |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:1/simple"}
        return subprocess.run(
            [self.environment / "bin" / "python", self.root / "scripts/kernels.py", *arguments],
            env=plain | environ,
            capture_output=True,
            text=True,
            check=False,
        )

    def kernels(self) -> list[str]:
        """What the package that is installed says; nothing where there is none."""
        done = subprocess.run(
            [self.environment / "bin" / "python", "-m", "headrace_kernels"],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.split()

    @property
    def log(self) -> Path:
        return next(self.root.glob("build/kernels/*/log.txt"))


def builds(test: Callable[[Checkout], None]) -> Callable[[Checkout], None]:
    """Marks a test that has pip and CMake at work."""
    return pytest.mark.slow(pytest.mark.timeout(300)(test))


@pytest.fixture
def able(tmp_path: Path) -> Checkout:
    """A checkout that has all that a build takes, without a network."""
    try:
        for name in (*MLX, *TOOLS):
            metadata.version(name)
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed: make kernels")
    if not shutil.which("c++"):
        pytest.skip("there is no C++ compiler")
    return Checkout(tmp_path, *MLX, *TOOLS, *ON_THE_WAY)


@builds
def test_they_are_built_once(able: Checkout) -> None:
    first = able.run()
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.endswith(" s: fast, slow\n")
    assert able.kernels() == ["fast", "slow"]
    written = able.log.stat().st_mtime_ns

    again = able.run()

    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert able.log.stat().st_mtime_ns == written
    shutil.rmtree(able.root / "build")
    assert able.run("--strict").stdout == "The kernels are built: fast, slow\n"


@builds
def test_a_change_builds_them_again(able: Checkout) -> None:
    able.run()
    able.main.write_text('print("faster")\n')

    assert able.run().stdout.endswith(" s: faster\n")
    assert able.kernels() == ["faster"]


@builds
def test_what_is_built_stays_where_a_compiler_has_gone(able: Checkout) -> None:
    able.run()

    done = able.run(CXX="/no/c++")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert able.kernels() == ["fast", "slow"]
    asked = able.run("--strict", CXX="/no/c++")
    assert asked.returncode == 1
    assert "/no/c++, named by CXX" in asked.stderr
    assert able.kernels() == ["fast", "slow"]
    assert able.run().stdout == ""


@builds
def test_a_failed_build_is_told_and_not_tried_again(able: Checkout) -> None:
    able.run()
    able.cmake.write_text(able.cmake.read_text() + 'message(FATAL_ERROR "no such CPU")\n')

    failed = able.run()

    assert failed.returncode == 0
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.startswith("Going on without the CPU kernels")
    assert "CMake Error" in failed.stderr
    assert able.kernels() == [], "what was built of other sources is still there"
    written = able.log.stat().st_mtime_ns
    again = able.run()
    assert (again.returncode, again.stdout, again.stderr) == (0, "", failed.stderr)
    assert able.log.stat().st_mtime_ns == written
    strict = able.run("--strict")
    assert strict.returncode == 1
    assert able.log.stat().st_mtime_ns != written
    assert "no such CPU" in strict.stderr


@builds
def test_what_does_not_load_is_a_failure(able: Checkout) -> None:
    able.main.write_text('raise ImportError("of another MLX")\n')

    assert "do not load: ImportError: of another MLX" in able.run().stderr
    assert able.run("--strict").returncode == 1


@pytest.mark.parametrize(
    ("packages", "environ", "said"),
    [
        (MLX, {"PATH": "/nowhere"}, "there is no C++ compiler; on Debian and Ubuntu: apt install"),
        (MLX, {"CXX": "/no/c++ -O1"}, "there is no C++ compiler (/no/c++, named by CXX, is not"),
        ((), {}, "and it is not installed here (pip install mlx=="),
        (MLX, {"CXX": sys.executable}, "tools of the build cannot be fetched: No matching"),
    ],
)
def test_what_is_missing_is_told_in_a_line(
    tmp_path: Path, packages: tuple[str, ...], environ: dict[str, str], said: str
) -> None:
    checkout = Checkout(tmp_path, *packages)

    done = checkout.run(**environ)

    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    strict = checkout.run("--strict", **environ)
    assert strict.returncode == 1
    assert said in strict.stderr


def test_another_release_of_mlx_is_told(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    other = checkout.site_packages / "mlx-9.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: mlx\nVersion: 9.9\n")

    assert "this environment has 9.9" in checkout.run().stderr


@builds
def test_a_folder_that_cannot_be_made_breaks_nothing(able: Checkout) -> None:
    (able.root / "build").write_text("in the way")

    done = able.run()

    assert done.returncode == 0
    assert done.stderr.startswith("Going on without the CPU kernels")
    assert "Not a directory" in done.stderr


def test_off_leaves_them_out(tmp_path: Path) -> None:
    done = Checkout(tmp_path).run(HEADRACE_KERNELS="off")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
