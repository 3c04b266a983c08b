"""Machines to test with."""

from __future__ import annotations

from pathlib import Path

from headrace.host.machine import Machine

GIB = 1 << 30

LINUX_CPU = Machine(
    system="Linux",
    arch="x86_64",
    version=(2, 36),
    cpus=4,
    cpu_features=frozenset({"avx2"}),
    memory_total=16 * GIB,
    memory_available=8 * GIB,
    device="cpu",
)
LINUX_CUDA = Machine(
    system="Linux",
    arch="x86_64",
    version=(2, 39),
    cpus=16,
    cpu_features=frozenset(),
    memory_total=64 * GIB,
    memory_available=60 * GIB,
    device="cuda",
    cuda_libraries=(Path("/site/nvidia/cublas/lib"), Path("/site/nvidia/cudnn/lib")),
    cuda_home=Path("/site/nvidia/cuda_runtime"),
)
MAC = Machine(
    system="Darwin",
    arch="arm64",
    version=(15, 1),
    cpus=10,
    cpu_features=frozenset(),
    memory_total=32 * GIB,
    memory_available=20 * GIB,
    device="metal",
)
