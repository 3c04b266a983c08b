"""What the services of a runner share whose model is for text."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.v1.common_pb2 import ModelKind
from headrace.v1.runner_pb2 import RunnerLimits
from headrace_runner.engine.text.engine import TextEngine
from headrace_runner.models.chat import ChatTemplate
from headrace_runner.models.load import LoadedModel
from headrace_runner.models.markup import ModelMarkup
from headrace_runner.models.tokenizer import Tokenizer
from headrace_runner.state import RunnerContext


@dataclass(slots=True, kw_only=True)
class TextRunner(RunnerContext[TextEngine, LoadedModel]):
    """A runner whose model is for text, as its services see it."""

    tokenizer: Tokenizer
    template: ChatTemplate
    markup: ModelMarkup
    context_length: int

    @property
    def kind(self) -> ModelKind.ValueType:
        return ModelKind.MODEL_KIND_TEXT

    @property
    def limits(self) -> RunnerLimits:
        return RunnerLimits(
            context_length=self.context_length,
            max_concurrency=self.config.max_concurrency,
            max_waiting=self.config.max_waiting,
            vocab_size=self.tokenizer.vocab_size,
            chat=self.template.exists,
        )
