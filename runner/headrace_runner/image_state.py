"""What the services of a runner share whose model is for images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.types import ImageTraits
from headrace.v1.common_pb2 import ModelKind
from headrace.v1.runner_pb2 import RunnerLimits
from headrace_runner.engine.image.engine import ImageEngine
from headrace_runner.engine.image.memory import WorkingBytes
from headrace_runner.engine.image.worker import LoadedPipeline
from headrace_runner.state import RunnerContext


@dataclass(slots=True, kw_only=True)
class ImageRunner(RunnerContext[ImageEngine, LoadedPipeline]):
    """A runner whose model is for images, as its services see it."""

    traits: ImageTraits
    adapters: frozenset[str]
    """Names of those that a request may ask for."""
    working: WorkingBytes
    free: Callable[[], int]
    """Bytes that may be taken now."""
    load_fraction: float = 0.0
    """How much of the model is loaded."""

    @property
    def kind(self) -> ModelKind.ValueType:
        return ModelKind.MODEL_KIND_IMAGE

    @property
    def limits(self) -> RunnerLimits:
        return RunnerLimits(
            max_concurrency=min(self.traits.max_batch, self.config.max_concurrency),
            max_waiting=self.config.max_waiting,
        )
