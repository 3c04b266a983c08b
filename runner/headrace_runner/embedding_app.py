"""Makes the runner of a model for embeddings, and its services."""

from __future__ import annotations

import asyncio
from functools import partial

from headrace.errors import UnsupportedModel
from headrace.host.handover import ReportWriter
from headrace.host.machine import Machine
from headrace.telemetry import names
from headrace_runner.config import RunnerConfig
from headrace_runner.convert.encoders import encoder_facts
from headrace_runner.embedding_state import EmbeddingRunner
from headrace_runner.engine.embedding.engine import EmbeddingEngine
from headrace_runner.engine.embedding.worker import Limits
from headrace_runner.models.device import claim_memory, memory_available
from headrace_runner.models.encoders.architectures import working_bytes
from headrace_runner.models.encoders.encoder import Encoder, load_encoder
from headrace_runner.models.encoders.inputs import TextEncoder
from headrace_runner.models.encoders.layout import read_traits
from headrace_runner.models.tokenizer import Tokenizer
from headrace_runner.served import Served, tell_without_effect, weights_type
from headrace_runner.services.embedding import EmbeddingServicer
from headrace_runner.starting import Start


def prepare(config: RunnerConfig, machine: Machine, report: ReportWriter, start: Start) -> Served:
    """Reads all of the model but its weights. Raises ModelCorrupt and UnsupportedModel."""
    traits = read_traits(config.model_dir)
    texts = TextEncoder(Tokenizer.load(config.model_dir), lower_case=traits.lower_case)
    longest = min(config.context or traits.context_length, traits.context_length)
    if longest <= texts.frame:
        raise UnsupportedModel(
            f"a context of {longest} tokens has no room for a text; "
            f"{texts.frame} tokens go around each"
        )
    facts = encoder_facts(config.model_dir)
    dtype = weights_type(config, machine, facts["parameters"], facts["tensor_bytes"])
    tell_without_effect(config, start, "embeddings", context=True)

    def load_model() -> Encoder:
        with start.part(names.SPAN_LOAD_WEIGHTS) as span:
            encoder = load_encoder(config.model_dir, dtype, on_progress)
            claim_memory()
            span.set_attribute(names.HEADRACE_WEIGHTS, encoder.weights)
            span.set_attribute(names.HEADRACE_WEIGHTS_BYTES, encoder.weights_bytes)
        start.warms_up()
        return encoder

    def on_progress(fraction: float) -> None:
        engine.check_wanted()
        report.loading(fraction)

    limits = Limits(config.max_concurrency, partial(working_bytes, traits.shape), memory_available)
    engine = EmbeddingEngine(load_model, limits)
    runner = EmbeddingRunner(
        config=config,
        engine=engine,
        loaded=asyncio.get_running_loop().create_future(),
        on_drain=report.draining,
        traits=traits,
        texts=texts,
        context_length=longest,
    )

    servicers = {
        "headrace.v1.EmbeddingService": EmbeddingServicer(runner),
    }
    return Served(runner, servicers, {"context_length": longest, "dimensions": traits.dimensions})
