"""Makes the runner of a model for images, and its services."""

from __future__ import annotations

import asyncio
from functools import lru_cache, partial

from headrace.errors import UnsupportedModel
from headrace.host.handover import ReportWriter
from headrace.host.machine import Machine
from headrace.telemetry import names
from headrace_runner.config import RunnerConfig
from headrace_runner.engine.image.engine import ImageEngine
from headrace_runner.engine.image.worker import Limits, LoadedPipeline
from headrace_runner.image_state import ImageRunner
from headrace_runner.models import families
from headrace_runner.models.device import claim_memory, memory_available
from headrace_runner.served import Served, tell_without_effect, weights_type
from headrace_runner.services.image import ImageServicer
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

    servicers = {
        "headrace.v1.ImageService": ImageServicer(runner),
    }
    return Served(runner, servicers, {"size": f"{traits.width}x{traits.height}"})
