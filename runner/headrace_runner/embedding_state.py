"""What the services of a runner share whose model is for embeddings."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.v1.common_pb2 import ModelKind
from headrace.v1.runner_pb2 import RunnerLimits
from headrace_runner.engine.embedding.engine import EmbeddingEngine
from headrace_runner.models.encoders.encoder import Encoder
from headrace_runner.models.encoders.inputs import TextEncoder
from headrace_runner.models.encoders.layout import EncoderTraits
from headrace_runner.state import RunnerContext


@dataclass(slots=True, kw_only=True)
class EmbeddingRunner(RunnerContext[EmbeddingEngine, Encoder]):
    """A runner whose model is for embeddings, as its services see it."""

    traits: EncoderTraits
    texts: TextEncoder
    context_length: int
    """Tokens of an input."""

    @property
    def kind(self) -> ModelKind.ValueType:
        return ModelKind.MODEL_KIND_EMBEDDING

    @property
    def limits(self) -> RunnerLimits:
        return RunnerLimits(
            context_length=self.context_length,
            max_concurrency=self.config.max_concurrency,
            max_waiting=self.config.max_waiting,
            vocab_size=self.traits.shape.vocabulary,
        )
