"""What this machine is: platform, usable CPUs, memory, and the device MLX will compute on.

Limits set by a container or a scheduler count, not the bare hardware. Never imports mlx.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil

from headrace.host import cgroup

Device = Literal["metal", "cuda", "cpu"]

CUDA_WHEELS = ("mlx-cuda-12", "mlx-cuda-13", "mlx-cuda")
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve", "bf16")


@dataclass(frozen=True)
class Machine:
    """A description of the machine, taken once. Memory is in bytes."""

    system: str
    """`platform.system()`: "Linux", "Darwin", …"""
    arch: str
    """`platform.machine()`: "x86_64", "aarch64", "arm64", …"""
    version: tuple[int, ...]
    """Of macOS on Darwin, of glibc on Linux; empty where neither is known (musl)."""
    cpus: int
    """Cores this process may use: affinity and CPU quota, at least 1."""
    cpu_features: frozenset[str]
    """The vector extensions that matter to matrix products, as Linux names them."""
    memory_total: int
    memory_available: int
    device: Device
    cuda_libraries: tuple[Path, ...] = ()
    """Library folders of NVIDIA's wheels, where the device is "cuda"."""
    cuda_home: Path | None = None
    """A folder with `include/cuda_runtime.h`, from NVIDIA's wheels, where the device is "cuda"."""


def describe(device: Device | None = None) -> Machine:
    """Look at this machine. `device` overrides the one that would be chosen."""
    system, arch = platform.system(), platform.machine()
    chosen = device or _choose_device(system, arch)
    memory = psutil.virtual_memory()
    limits = cgroup.read() if system == "Linux" else cgroup.Limits()
    libraries, home = _cuda_wheels(sys.path) if chosen == "cuda" else ((), None)
    return Machine(
        system=system,
        arch=arch,
        version=_version(system),
        cpus=_cpus(limits.cpus),
        cpu_features=_cpu_features(system),
        memory_total=_least(memory.total, limits.memory_total),
        memory_available=_least(memory.available, limits.memory_available),
        device=chosen,
        cuda_libraries=libraries,
        cuda_home=home,
    )


def memory_available() -> int:
    """Bytes that this process and its children may still take, now."""
    limits = cgroup.read() if platform.system() == "Linux" else cgroup.Limits()
    return _least(psutil.virtual_memory().available, limits.memory_available)


def parse_version(text: str) -> tuple[int, ...]:
    """ "14.5" is (14, 5); what is not a number ends it."""
    parts: list[int] = []
    for part in text.split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)


def _least(bare: int, limit: int | None) -> int:
    return bare if limit is None else min(bare, limit)


def _version(system: str) -> tuple[int, ...]:
    if system == "Darwin":
        return parse_version(platform.mac_ver()[0])
    library, version = platform.libc_ver()
    return parse_version(version) if library == "glibc" else ()


def _cpus(quota: float | None) -> int:
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(usable, int(quota))) if quota else usable


def _cpu_features(system: str) -> frozenset[str]:
    if system != "Linux":
        return frozenset()
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split()).intersection(_CPU_FEATURES)
    return frozenset()


def _choose_device(system: str, arch: str) -> Device:
    if system == "Darwin":
        return "metal" if arch == "arm64" else "cpu"
    # /dev/dxg is the GPU as the Windows Subsystem for Linux shows it.
    has_gpu = any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/dxg"))
    return "cuda" if has_gpu and any(_is_installed(name) for name in CUDA_WHEELS) else "cpu"


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _cuda_wheels(search: Iterable[str]) -> tuple[tuple[Path, ...], Path | None]:
    roots = [Path(entry) / "nvidia" for entry in search]
    libraries = tuple(folder for root in roots for folder in sorted(root.glob("*/lib")))
    headers = [file for root in roots for file in sorted(root.glob("*/include/cuda_runtime.h"))]
    return libraries, headers[0].parent.parent if headers else None
