"""What a runner serves: the same for all kinds of models, made differently for each."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import grpc

from headrace.host.dtype import choose_dtype
from headrace.host.machine import Machine
from headrace_runner.config import RunnerConfig
from headrace_runner.starting import Start
from headrace_runner.state import AnyRunner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A runner that is ready to load its model, and its services."""

    runner: AnyRunner
    services: tuple[str, ...]
    """Full names of those that the model is for; health and reflection list them."""
    add_to: Callable[[grpc.aio.Server], None]
    """Adds them to a server, and such as refuse what the model is not for."""
    facts: Mapping[str, object]
    """For the line that says that it serves."""


def weights_type(
    config: RunnerConfig, machine: Machine, parameters: int, stored_bytes: int
) -> Literal["float32", "stored"]:
    """The type to load the weights in."""
    if config.dtype != "auto":
        return config.dtype
    return choose_dtype(
        machine.device,
        parameters,
        stored_bytes,
        machine.memory_available,
        "LD_PRELOAD" in os.environ,
    )


def tell_without_effect(
    config: RunnerConfig, start: Start, made: str, *, context: bool = False
) -> None:
    """Warns of options that only text has. `made`: what the model makes; `context`: whether it has
    one as well.

    A controller gives all its runners the same; who starts one by hand may have meant it.
    """
    given = {
        "--context": config.context is not None and not context,
        "--kv-cache": config.kv_cache is not None,
        "--prefix-cache": config.prefix_cache is not None,
        "--no-drafts": not config.drafts,
    }
    if named := [option for option, there in given.items() if there]:
        with start.lines():
            logger.warning("%s: for text alone, without effect on %s", ", ".join(named), made)
