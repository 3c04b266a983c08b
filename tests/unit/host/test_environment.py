"""A runner's environment, platform by platform."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.host.blas import Blas
from headrace.host.environment import runner_environment
from headrace.host.machine import Machine
from tests.unit.host.machines import LINUX_CPU, LINUX_CUDA, MAC

OPENBLAS = Blas(Path("/cache/libopenblas.so"), "bundled")
MKL = Blas(Path("/mkl/libmkl_rt.so.2"), "system", (Path("/mkl"),))
THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")
COMMON = {
    "GRPC_ENABLE_FORK_SUPPORT": "false",
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
    "PYTHONSAFEPATH": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
FOUR = dict.fromkeys(THREADS, "4")


@pytest.mark.parametrize(
    ("machine", "blas", "has_cxx", "expected"),
    [
        pytest.param(MAC, None, False, {}, id="macOS"),
        pytest.param(replace(MAC, device="cpu"), None, False, {}, id="macOS on its CPU"),
        pytest.param(LINUX_CPU, None, True, FOUR, id="Linux, no BLAS"),
        pytest.param(
            LINUX_CPU,
            OPENBLAS,
            True,
            FOUR | {"LD_PRELOAD": "/cache/libopenblas.so"},
            id="Linux, OpenBLAS",
        ),
        pytest.param(
            LINUX_CPU,
            MKL,
            True,
            FOUR | {"LD_PRELOAD": "/mkl/libmkl_rt.so.2", "LD_LIBRARY_PATH": "/mkl"},
            id="Linux, MKL",
        ),
        pytest.param(
            LINUX_CPU, None, False, FOUR | {"MLX_DISABLE_COMPILE": "1"}, id="Linux, no compiler"
        ),
        pytest.param(
            LINUX_CUDA,
            OPENBLAS,
            False,
            {
                "LD_LIBRARY_PATH": "/site/nvidia/cublas/lib:/site/nvidia/cudnn/lib",
                "CUDA_HOME": "/site/nvidia/cuda_runtime",
            },
            id="CUDA",
        ),
    ],
)
def test_the_table(
    machine: Machine, blas: Blas | None, has_cxx: bool, expected: dict[str, str]
) -> None:
    assert runner_environment({}, machine, blas, has_cxx) == COMMON | expected


def test_what_the_user_has_set_is_kept_behind_ours() -> None:
    base = {"LD_PRELOAD": "/lib/own.so", "LD_LIBRARY_PATH": "/own", "HOME": "/home/u"}
    found = runner_environment(base, LINUX_CPU, MKL)
    assert found["LD_PRELOAD"] == "/mkl/libmkl_rt.so.2:/lib/own.so"
    assert found["LD_LIBRARY_PATH"] == "/mkl:/own"
    assert found["HOME"] == "/home/u"
    assert base["LD_PRELOAD"] == "/lib/own.so"


@pytest.mark.parametrize(
    ("base", "threads", "expected"),
    [
        ({}, None, ("4", "4", "4", "4")),
        ({}, 2, ("2", "2", "2", "2")),
        ({"OMP_NUM_THREADS": "3"}, None, ("3", "3", "3", "3")),
        ({"OPENBLAS_NUM_THREADS": "1"}, None, ("1", "1", "1", "1")),
        ({"MKL_NUM_THREADS": "2", "OMP_NUM_THREADS": "3"}, None, ("3", "2", "3", "3")),
        ({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "3"}, 2, ("2", "2", "2", "2")),
        ({"OMP_NUM_THREADS": ""}, None, ("4", "4", "4", "4")),
    ],
)
def test_threads(base: dict[str, str], threads: int | None, expected: tuple[str, ...]) -> None:
    found = runner_environment(base, LINUX_CPU, OPENBLAS, threads=threads)
    assert tuple(found[name] for name in THREADS) == expected


@pytest.mark.parametrize("name", ["CUDA_HOME", "CUDA_PATH"])
def test_a_cuda_toolkit_of_the_users_wins(name: str) -> None:
    found = runner_environment({name: "/opt/cuda"}, LINUX_CUDA)
    assert {key: found[key] for key in ("CUDA_HOME", "CUDA_PATH") if key in found} == {
        name: "/opt/cuda"
    }
