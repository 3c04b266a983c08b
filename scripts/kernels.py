"""Builds kernels/ for the CPU of this machine, into the environment whose Python runs this.

`make install`, `make run` and `make test` call it. Without the kernels Headrace works, slower: what
keeps them from being built is told in a line, and is an error with `--strict` alone, which is
`make kernels`. Nothing is done where nothing has changed. `HEADRACE_KERNELS=off` leaves them out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels"
CONSTRAINTS = ROOT / "constraints.txt"
PACKAGE = "headrace-kernels"
SWITCH = "HEADRACE_KERNELS"
_CXX = os.environ.get("CXX", "")
# Objects are kept, so that only what has changed is compiled again; a folder has one compiler.
_BUILD = ROOT / "build" / "kernels" / f"{sys.implementation.cache_tag}{_CXX.replace('/', '-')}"
_LOG = _BUILD / "log.txt"
# Of what was built here last; or of what could not be, with the compiler, and the reason.
_STAMP = Path(sys.prefix) / ".kernels"
_COMPILERS = ("c++", "g++", "clang++")
_STEP = re.compile(r"\[(\d+)/(\d+)\] ")
_ERROR = re.compile(r"\berror: |CMake Error")
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


class Missing(Exception):
    """Why the kernels cannot be built, and how to get what is missing."""


class Failed(Missing):
    """The same, where trying again without a change would only cost a minute once more."""


def main(arguments: Sequence[str]) -> int:
    """Gives the exit code: 0, but with `--strict` 1 where there are no kernels."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--strict", action="store_true", help="fail where they cannot be built")
    strict = parser.parse_args(arguments).strict
    if not strict and (sys.platform != "linux" or os.environ.get(SWITCH) == "off"):
        return 0
    attempt, stale = "", False
    try:
        # What is built from the same sources fits them, whichever compiler has built it.
        digest, attempt = _digest(), _digest(_CXX)
        before, _, reason = _read_stamp().partition(" ")
        ours = bool(before and not reason)
        stale = ours and before != digest
        if ours and not stale and _installed():
            if not strict:
                return 0
            if not _CXX:  # Who names a compiler wants another one.
                with contextlib.suppress(Failed):  # They are built anew.
                    print(f"The kernels are built: {_loaded()}")
                    return 0
        if before == attempt and reason and not strict:
            raise Failed(reason)
        _check()
        print("Building the kernels for this CPU, once: a minute of one core's time", flush=True)
        start = time.monotonic()
        _fetch_tools(strict)
        _build(strict)
        stale = True  # Until they have been seen to load.
        print(f"Built the kernels in {time.monotonic() - start:.0f} s: {_loaded()}")
        _keep(digest)
    except Missing as error:
        return _do_without(error, attempt, stale=stale, strict=strict)
    except OSError as error:
        return _do_without(Missing(str(error)), attempt, stale=stale, strict=strict)
    return 0


def _do_without(error: Missing, attempt: str, *, stale: bool, strict: bool) -> int:
    """Tells why there are none. What was built here of other sources goes: it may not fit these."""
    if stale and _installed():
        subprocess.run([*_PIP, "uninstall", "--quiet", "--yes", PACKAGE], check=False)
    if stale or not _installed():
        _keep(f"{attempt} {error}" if isinstance(error, Failed) else "")
    if strict:
        print(f"The kernels were not built: {error}", file=sys.stderr)
        return 1
    if not _installed():  # Else they came from elsewhere, and stay.
        print(
            f"Going on without the CPU kernels, which make models faster: {error}. "
            "`make kernels` tries again and shows everything",
            file=sys.stderr,
        )
    return 0


def tools() -> list[str]:
    """What the build needs beside MLX, in the versions of constraints.txt."""
    project = tomllib.loads((KERNELS / "pyproject.toml").read_text(encoding="utf-8"))
    asked = {text.partition("==")[0] for text in project["build-system"]["requires"]}
    pins = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return [pin for pin in pins if pin.partition("==")[0] in asked | {"cmake", "ninja"}]


def _check() -> None:
    """Raises Missing where it is clear beforehand that a build would fail."""
    if sys.platform != "linux":
        raise Missing("they are for Linux; elsewhere MLX has its own")
    project = tomllib.loads((KERNELS / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = next(text for text in project["dependencies"] if text.startswith("mlx=="))
    found = _version("mlx")
    if found != wanted.partition("==")[2]:
        there = f"this environment has {found}" if found else "it is not installed here"
        raise Missing(f"they need {wanted}, and {there} (pip install {wanted})")
    compilers = _CXX.split()[:1] or _COMPILERS
    if not any(shutil.which(name) for name in compilers):
        named = f" ({compilers[0]}, named by CXX, is not there)" if len(compilers) == 1 else ""
        raise Missing(f"there is no C++ compiler{named}; on Debian and Ubuntu: apt install g++")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise Missing(
            "there are no headers of Python; on Debian and Ubuntu: apt install python3-dev"
        )


def _fetch_tools(strict: bool) -> None:
    """Raises Missing where they cannot be had."""
    done = subprocess.run(
        [*_PIP, "--retries=2", "install", "--quiet", *tools()],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        if strict:
            print(done.stderr, file=sys.stderr)
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        said = lines[-1].removeprefix("ERROR: ") if lines else "pip failed"
        raise Missing(f"CMake and other tools of the build cannot be fetched: {said}")


def _build(strict: bool) -> None:
    """Compiles and installs. Raises Failed where that fails; `_LOG` has all that was said."""
    command = [
        *(*_PIP, "-v", "install", "--no-index", "--no-deps", "--no-build-isolation"),
        *("--force-reinstall", f"--config-settings=build-dir={_BUILD}", str(KERNELS)),
    ]
    _BUILD.mkdir(parents=True, exist_ok=True)
    running = subprocess.Popen(
        command,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert running.stdout is not None
    error = ""
    with _LOG.open("w", encoding="utf-8") as log, running:
        for line in running.stdout:
            log.write(line)
            step = _STEP.search(line)
            if step and sys.stdout.isatty():
                print(f"\r  {step[1]} of {step[2]} ", end="", flush=True)
            if not error and _ERROR.search(line):
                error = line.strip()
    if sys.stdout.isatty():
        print("\r", end="")
    if running.returncode:
        if strict:
            print(_LOG.read_text(encoding="utf-8"), file=sys.stderr)
        # Where no compiler has said what is wrong, it may go well the next time.
        kind = Failed if error else Missing
        raise kind(f"the build failed ({error or 'pip failed'}); see {_LOG.relative_to(ROOT)}")


def _loaded() -> str:
    """The paths that work here, as the package names them. Raises Failed where it does not load."""
    environ = {name: value for name, value in os.environ.items() if name != SWITCH}
    done = subprocess.run(
        [sys.executable, "-m", PACKAGE.replace("-", "_")],
        cwd=sys.prefix,  # Not where the sources are, which would be found first.
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise Failed(f"they were built, and do not load: {lines[-1]}")
    return ", ".join(done.stdout.split())


def _environment() -> dict[str, str]:
    """With the programs of this environment, and pip as talkative as it is here told to be."""
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
    for name in ("PIP_QUIET", "PIP_VERBOSE"):
        environ.pop(name, None)
    return environ


def _digest(*more: str) -> str:
    """Of all that a build has to fit, and of `more`."""
    found = hashlib.sha256()
    folders = KERNELS / "src", KERNELS / PACKAGE.replace("-", "_")
    sources = [path for folder in folders for path in sorted(folder.rglob("*"))]
    top = "CMakeLists.txt", "paths.cmake", "pyproject.toml"
    for path in (*(KERNELS / name for name in top), *sources):
        if path.is_file() and path.suffix not in (".so", ".pyc"):
            found.update(f"{path.relative_to(KERNELS)}\n".encode() + path.read_bytes())
    for other in (*tools(), sys.version, _version("mlx"), *more):
        found.update(f"\n{other}".encode())
    return found.hexdigest()


def _keep(stamp: str) -> None:
    """A stamp that cannot be written costs another build, or another try, and no install."""
    with contextlib.suppress(OSError):
        _STAMP.write_text(stamp, encoding="utf-8")


def _read_stamp() -> str:
    return _STAMP.read_text(encoding="utf-8") if _STAMP.exists() else ""


def _installed() -> bool:
    return bool(_version(PACKAGE))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
