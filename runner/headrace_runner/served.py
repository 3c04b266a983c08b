"""What a runner serves: the same for all kinds of models, made differently for each."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import grpc

from headrace.host.dtype import choose_dtype
from headrace.host.machine import Machine
from headrace.v1 import (
    completion_pb2_grpc,
    embedding_pb2_grpc,
    image_pb2_grpc,
    score_pb2_grpc,
    tokenize_pb2_grpc,
)
from headrace_runner.config import RunnerConfig
from headrace_runner.services.other_kind import (
    NoCompletions,
    NoEmbeddings,
    NoImages,
    NoScores,
    NoTokens,
    Refusing,
)
from headrace_runner.starting import Start
from headrace_runner.state import AnyRunner

logger = logging.getLogger(__name__)


_SERVICES: Mapping[str, tuple[Callable[[Any, grpc.aio.Server], None], type[Refusing]]] = {
    "headrace.v1.CompletionService": (
        completion_pb2_grpc.add_CompletionServiceServicer_to_server,
        NoCompletions,
    ),
    "headrace.v1.TokenizeService": (
        tokenize_pb2_grpc.add_TokenizeServiceServicer_to_server,
        NoTokens,
    ),
    "headrace.v1.ScoreService": (score_pb2_grpc.add_ScoreServiceServicer_to_server, NoScores),
    "headrace.v1.ImageService": (image_pb2_grpc.add_ImageServiceServicer_to_server, NoImages),
    "headrace.v1.EmbeddingService": (
        embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server,
        NoEmbeddings,
    ),
}
"""What models are for: each service, and what stands in for it where a model is not for it."""


@dataclass(frozen=True, slots=True)
class Served:
    """A runner that is ready to load its model, and its services."""

    runner: AnyRunner
    servicers: Mapping[str, object]
    """What the model is for, by the services' full names."""
    facts: Mapping[str, object]
    """For the line that says that it serves."""

    @property
    def services(self) -> tuple[str, ...]:
        """Full names of those that the model is for; health and reflection list them."""
        return tuple(self.servicers)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds them to a server, and such as refuse what the model is not for."""
        for name, (add, refusing) in _SERVICES.items():
            add(self.servicers.get(name) or refusing(self.runner), server)


def weights_type(
    config: RunnerConfig, machine: Machine, parameters: int, stored_bytes: int
) -> Literal["float32", "stored"]:
    """The type to load the weights in. "int8" is one only of `text_weights_type`."""
    if config.dtype in ("float32", "stored"):
        return config.dtype
    chosen = choose_dtype(
        machine.device,
        parameters,
        stored_bytes,
        machine.memory_available,
        "LD_PRELOAD" in os.environ,
    )
    assert chosen != "int8"  # For kernels alone.
    return chosen


def text_weights_type(
    config: RunnerConfig,
    machine: Machine,
    parameters: int,
    stored_bytes: int,
    why_not_int8: Callable[[], str],
) -> Literal["float32", "int8", "stored"]:
    """The same for a model for text, "int8" where that can be. `why_not_int8` is asked then."""
    if config.dtype in ("auto", "int8"):
        if not (reason := why_not_int8()):
            return "int8"
        if config.dtype == "int8":
            logger.warning("--dtype int8: %s; the weights are loaded as by --dtype auto", reason)
    return weights_type(config, machine, parameters, stored_bytes)


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
        "--adapters": config.adapters is not None,
        "--dtype int8": config.dtype == "int8",
    }
    if named := [option for option, there in given.items() if there]:
        with start.lines():
            logger.warning("%s: for text alone, without effect on %s", ", ".join(named), made)
