"""The environment variables of a runner, by platform. Pure: a mapping in, a mapping out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from headrace.host.blas import Blas
from headrace.host.machine import Machine

_EVERYWHERE = {
    # Children are started with exec; gRPC's fork handlers can only hang them (grpc#37259).
    "GRPC_ENABLE_FORK_SUPPORT": "false",
    "PYTHONUNBUFFERED": "1",
    # Prints the Python stack of a native crash to stderr, where the diagnosis reads it.
    "PYTHONFAULTHANDLER": "1",
    # A folder of the user's that happens to hold a `numpy.py` is not on the runner's path.
    "PYTHONSAFEPATH": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # A runner reads a model directory and nothing else.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_THREAD_COUNTS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "OMP_NUM_THREADS")


def runner_environment(
    base: Mapping[str, str],
    machine: Machine,
    blas: Blas | None = None,
    has_cxx: bool = True,
    threads: int | None = None,
) -> dict[str, str]:
    """`base` with what a runner on this machine needs.

    `threads` is the number of cores to compute on. None means what `base` says (a library's own
    variable, else OMP_NUM_THREADS), else every usable core. Other settings of the user's, such as
    OPENBLAS_CORETYPE or MLX_DISABLE_COMPILE, stay as they are.
    """
    environment = {**base, **_EVERYWHERE}
    if machine.device == "cpu" and machine.system == "Linux":
        _add_cpu(environment, machine, blas, has_cxx, threads)
    elif machine.device == "cuda":
        _add_cuda(environment, machine)
    return environment


def _add_cpu(
    environment: dict[str, str],
    machine: Machine,
    blas: Blas | None,
    has_cxx: bool,
    threads: int | None,
) -> None:
    if blas is not None:
        _prepend(environment, "LD_PRELOAD", blas.preload)
        _prepend(environment, "LD_LIBRARY_PATH", blas.library_path)
    given = (environment.get(name) for name in ("OMP_NUM_THREADS", *_THREAD_COUNTS))
    default = next(filter(None, given), str(machine.cpus))
    for name in _THREAD_COUNTS:
        environment[name] = str(threads) if threads else environment.get(name) or default
    if not has_cxx:
        environment.setdefault("MLX_DISABLE_COMPILE", "1")


def _add_cuda(environment: dict[str, str], machine: Machine) -> None:
    _prepend(environment, "LD_LIBRARY_PATH", machine.cuda_libraries)
    # MLX compiles kernels at run time against CUDA's headers; a toolkit the user names comes first.
    if machine.cuda_home is not None and "CUDA_PATH" not in environment:
        environment.setdefault("CUDA_HOME", str(machine.cuda_home))


def _prepend(environment: dict[str, str], name: str, paths: Iterable[Path]) -> None:
    entries = [str(path) for path in paths]
    if environment.get(name):
        entries.append(environment[name])
    if entries:
        environment[name] = ":".join(entries)
