"""Makes the runner of a model for images, and its services."""

from __future__ import annotations

import asyncio
from functools import lru_cache, partial

import grpc

from headrace.errors import UnsupportedModel
from headrace.host.handover import ReportWriter
from headrace.host.machine import Machine
from headrace.telemetry import names
from headrace.v1 import (
    completion_pb2_grpc,
    embedding_pb2_grpc,
    image_pb2_grpc,
    tokenize_pb2_grpc,
)
from headrace_runner.config import RunnerConfig
from headrace_runner.engine.image.engine import ImageEngine
from headrace_runner.engine.image.worker import Limits, LoadedPipeline
from headrace_runner.image_state import ImageRunner
from headrace_runner.models import families
from headrace_runner.models.device import claim_memory, memory_available
from headrace_runner.served import Served, tell_without_effect, weights_type
from headrace_runner.services.image import ImageServicer
from headrace_runner.services.other_kind import NoCompletions, NoEmbeddings, NoTokens
from headrace_runner.starting import Start

_SIZES = 256
"""Sizes of which it is remembered what they take."""


def prepare(config: RunnerConfig, machine: Machine, report: ReportWriter, start: Start) -> Served:
    """Reads all of the model but its weights. Raises ModelCorrupt and UnsupportedModel."""
    directory = config.model_dir
    family = families.find(directory)
    if family is None:
        raise UnsupportedModel(
            f"{directory.name} is no image model that this version can draw with; "
            "see the documentation for those that it can"
        )
    facts, traits = family.facts(directory), family.traits(directory)
    dtype = weights_type(config, machine, facts["parameters"], facts["tensor_bytes"])
    working = lru_cache(_SIZES)(partial(family.working_bytes, directory))
    tell_without_effect(config, start, "images")

    def load_model() -> LoadedPipeline:
        with start.part(names.SPAN_LOAD_WEIGHTS) as span:
            pipeline = family.load(directory, dtype, on_progress)
            loaded = LoadedPipeline(pipeline, claim_memory())
            span.set_attribute(names.HEADRACE_WEIGHTS, loaded.weights)
            span.set_attribute(names.HEADRACE_WEIGHTS_BYTES, loaded.weights_bytes)
        start.warms_up()
        return loaded

    def on_progress(fraction: float) -> None:
        engine.check_wanted()
        runner.load_fraction = fraction
        report.loading(fraction)

    engine = ImageEngine(load_model, Limits(config.max_concurrency, working, memory_available))
    runner = ImageRunner(
        config=config,
        engine=engine,
        loaded=asyncio.get_running_loop().create_future(),
        on_drain=report.draining,
        traits=traits,
        adapters=families.adapters(directory),
        working=working,
        free=memory_available,
    )

    def add_to(server: grpc.aio.Server) -> None:
        image_pb2_grpc.add_ImageServiceServicer_to_server(ImageServicer(runner), server)
        completion_pb2_grpc.add_CompletionServiceServicer_to_server(NoCompletions(runner), server)
        tokenize_pb2_grpc.add_TokenizeServiceServicer_to_server(NoTokens(runner), server)
        embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server(NoEmbeddings(runner), server)

    size = f"{traits.width}x{traits.height}"
    return Served(runner, ("headrace.v1.ImageService",), add_to, {"size": size})
