"""Build the kernels otherwise than they are installed, and run their tests with that.

`sanitize` builds them with the sanitizers for addresses and undefined behaviour. `aarch64` builds
them for that CPU with a cross compiler and runs the tests, and the Python they need, under QEMU.
Everything goes to .cache/kernels; what is there already is used again. Further arguments are
pytest's, in place of the folder of the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
CACHE = ROOT / ".cache" / "kernels"
TESTS = "tests/unit/kernels"
GLIBC = ("2_35", "2_34", "2_28", "2_27", "2_17")
"""Versions that wheels for Linux name; each means that one and all later ones."""
OF_THE_TESTS = ("hypothesis", "numpy", "pytest", "pytest-timeout")


class MissingError(Exception):
    """A program that is needed is not there; says which, and how to get it."""


def main(arguments: list[str]) -> int:
    """Gives pytest's exit code, or 2 where the tests could not be run at all."""
    commands = {"sanitize": sanitize, "aarch64": aarch64}
    if not arguments or arguments[0] not in commands:
        print(f"usage: {Path(__file__).name} {'|'.join(commands)} [pytest's arguments]")
        return 2
    try:
        return commands[arguments[0]](arguments[1:])
    except MissingError as error:
        print(error, file=sys.stderr)
    except subprocess.CalledProcessError as error:
        print(f"{error.cmd[0]} ended with {error.returncode}", file=sys.stderr)
    return 2


def sanitize(arguments: list[str]) -> int:
    """With GCC's sanitizers; a finding ends the tests."""
    package = build("sanitize", "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DHEADRACE_SANITIZE=ON")
    # Python itself is built without, so they have to be there before it; and C++, to see it throw.
    libraries = ("libasan.so", "libubsan.so", "libstdc++.so")
    environment = {
        "LD_PRELOAD": " ".join(map(_library_of_gcc, libraries)),
        # What Python keeps to its end is no leak.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(package),
    }
    # Findings are written to stderr itself, which pytest has to leave alone.
    arguments = ["--capture=sys", *(arguments or [TESTS])]
    return test([sys.executable], environment, package, arguments)


def aarch64(arguments: list[str]) -> int:
    """For aarch64, emulated. Not measured: only whether it is right."""
    compiler = needed("aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu")
    qemu = needed("qemu-aarch64-static", "qemu-user-static")
    root, packages = _python_for_aarch64(), _packages_for_aarch64()
    package = build(
        "aarch64",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        f"-DMLX_DIR={packages / 'mlx' / 'share' / 'cmake' / 'MLX'}",
        # The headers of this Python, which are the same.
        f"-DPython_INCLUDE_DIR={sysconfig.get_path('include')}",
    )
    python = [qemu, "-L", str(root), "-E", f"LD_LIBRARY_PATH={packages / 'mlx' / 'lib'}"]
    python.append(str(root / "usr" / "bin" / f"python{_version()}"))
    paths = os.pathsep.join(map(str, (package, packages, ROOT)))
    environment = {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    # Without what other tests need.
    alone = ["-c", os.devnull, f"--rootdir={ROOT}", f"--confcutdir={TESTS}"]
    alone += ["--import-mode=importlib", "--hypothesis-profile=ci", "-p", "no:cacheprovider"]
    alone += ["-o", "markers=toolchain"]
    return test(python, environment, package, [*alone, *(arguments or [TESTS])])


def build(name: str, *options: str) -> Path:
    """The package, built by CMake with these options, in a folder of its own."""
    cmake = needed("cmake", "cmake")
    tools, folder = CACHE / "tools", CACHE / name
    install(tools, _wanted("nanobind"))
    environment = {**os.environ, "PYTHONPATH": str(tools)}
    configure = [cmake, "-S", str(KERNELS), "-B", str(folder / "build"), *options]
    configure.append(f"-DPython_EXECUTABLE={sys.executable}")
    for command in (configure, [cmake, "--build", configure[4], f"-j{os.cpu_count()}"]):
        subprocess.run(command, check=True, env=environment)
    (library,) = (folder / "build").glob("_ext.*.so")
    package = folder / "package" / "headrace_kernels"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(KERNELS / "headrace_kernels", package, ignore=lambda *_: ["__pycache__"])
    shutil.copy(library, package / "_ext.so")
    return package.parent


def test(
    python: list[str], environment: Mapping[str, str], package: Path, arguments: list[str]
) -> int:
    """Runs the tests of the kernels with this package and no other. Gives pytest's exit code."""
    env = {**os.environ, **environment}
    which = "import headrace_kernels as k; print(*k.paths()); print(k.__file__)"
    said = subprocess.run([*python, "-c", which], env=env, check=True, stdout=-1, text=True)
    paths, file = said.stdout.splitlines()
    if not Path(file).is_relative_to(package):
        raise MissingError(f"{file} is in the way of what was built in {package}")
    print("paths:", paths, flush=True)
    command = [*python, "-m", "pytest", "-m", "not toolchain", *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, check=False).returncode


def install(target: Path, *requirements: str, options: tuple[str, ...] = ()) -> None:
    """Packages from PyPI into a folder, if this was not done before."""
    done, text = target / ".done", "\n".join((*requirements, *options))
    if done.exists() and done.read_text(encoding="utf-8") == text:
        return
    shutil.rmtree(target, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run(
        [*pip, *constraints, "--target", target, *options, *requirements], check=True, cwd=ROOT
    )
    done.write_text(text, encoding="utf-8")


def needed(program: str, package: str) -> str:
    """A program's path. Raises MissingError where it is not there, with Debian's package."""
    # `make kernels` has brought CMake into the environment.
    here = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    if found := shutil.which(program, path=here):
        return found
    raise MissingError(f"{program} is missing; on Debian: apt-get install {package}")


def _wanted(name: str) -> str:
    """What the package is built with, to the exact version."""
    with (KERNELS / "pyproject.toml").open("rb") as file:
        requires: list[str] = tomllib.load(file)["build-system"]["requires"]
    return next(each for each in requires if each.startswith(name))


def _library_of_gcc(name: str) -> str:
    compiler = needed("g++", "g++")
    found = subprocess.run(
        [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        raise MissingError(f"{name} is missing, which comes with GCC")
    return str(Path(found).resolve())


def _packages_for_aarch64() -> Path:
    target = CACHE / "aarch64" / "packages"
    options = ["--only-binary=:all:", f"--python-version={_version()}"]
    options += [f"--platform=manylinux_{glibc}_aarch64" for glibc in GLIBC]
    options.append("--platform=manylinux2014_aarch64")
    # Its own dependency is by the platform that pip runs on, so both are named.
    mlx = _wanted("mlx").partition("==")[2]
    install(target, f"mlx=={mlx}", f"mlx-cpu=={mlx}", *OF_THE_TESTS, options=tuple(options))
    return target


def _python_for_aarch64() -> Path:
    """The same Python from Debian, unpacked in a folder; with an apt that knows of nothing else."""
    apt, base = needed("apt-get", "apt"), CACHE / "aarch64" / "apt"
    root = base / "root"
    if (root / ".done").exists():
        return root
    shutil.rmtree(base, ignore_errors=True)
    for folder in ("lists/partial", "archives/partial", "root"):
        (base / folder).mkdir(parents=True)
    (base / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "APT::Install-Recommends": "0",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "1",
        "Dir::State": base,
        "Dir::State::lists": base / "lists",
        "Dir::State::status": base / "status",
        "Dir::Cache": base,
        "Dir::Cache::archives": base / "archives",
    }
    command = [apt, "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    wanted = [f"python{_version()}", "libstdc++6"]
    subprocess.run([*command, "update"], check=True)
    subprocess.run([*command, "install", "-y", "--download-only", *wanted], check=True)
    for archive in sorted((base / "archives").glob("*.deb")):
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", archive], stdout=subprocess.PIPE
        ) as unpacked:
            tar = ["tar", "-x", "--keep-directory-symlink", "-C", str(root)]
            subprocess.run(tar, check=True, stdin=unpacked.stdout)
    (root / ".done").touch()
    return root


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
