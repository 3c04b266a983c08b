"""What the controller finds out about its machine before it starts a runner.

Slow: it reads package metadata and may prepare a BLAS library. Run it in a thread.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from headrace.host import checks
from headrace.host.blas import BlasError, find_blas
from headrace.host.compiler import has_cxx
from headrace.host.environment import runner_environment
from headrace.host.kernels import Kernels, find_kernels
from headrace.host.machine import Machine
from headrace_server.config import ServerConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hosting:
    """How runners are started here."""

    machine: Machine
    environment: dict[str, str]
    """Of every runner."""
    has_blas: bool
    kernels: Kernels
    problem: str
    """Why no runner can be started here, with the remedy; empty where one can."""


def prepare(machine: Machine, config: ServerConfig) -> Hosting:
    """Find out all of it."""
    findings = checks.platform_findings(machine, checks.installed())
    problems = [f"{found.message}; {found.remedy}" for found in checks.problems(findings)]
    try:
        blas = find_blas(config.blas, config.home)
    except BlasError as error:
        blas = None
        problems.append(str(error))
    environment = runner_environment(
        os.environ, machine, blas=blas, has_cxx=has_cxx(), threads=config.threads
    )
    if machine.system == "Linux":
        # A runner has one connection, its controller's. For few, poll(2) costs it a tenth less a
        # message than what gRPC does to serve thousands (see docs/performance.md).
        environment.setdefault("GRPC_POLL_STRATEGY", "poll")
    if machine.device == "cpu":
        kernels = find_kernels()
        if not kernels.path:
            logger.info(
                "no kernels for this CPU, which would make quantised models several times faster: "
                "%s; `headrace doctor` says what helps",
                kernels.reason,
            )
    else:
        kernels = Kernels(reason=f"they are for a CPU, and MLX computes on {machine.device} here")
    return Hosting(machine, environment, blas is not None, kernels, "; ".join(problems))
