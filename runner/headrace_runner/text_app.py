"""Makes the runner of a model for text, and its services."""

from __future__ import annotations

import asyncio
from functools import partial

from headrace.errors import ModelCorrupt
from headrace.host.handover import ReportWriter
from headrace.host.machine import Machine
from headrace.telemetry import names
from headrace_runner.config import RunnerConfig
from headrace_runner.convert.facts import read_facts
from headrace_runner.engine.text.engine import TextEngine
from headrace_runner.engine.text.worker import Limits
from headrace_runner.models import cpu
from headrace_runner.models.chat import ChatTemplate
from headrace_runner.models.files import read_json
from headrace_runner.models.load import LoadedModel, load
from headrace_runner.models.markup import load_markup
from headrace_runner.models.tokenizer import Tokenizer
from headrace_runner.served import Served, text_weights_type
from headrace_runner.services.completion import CompletionServicer
from headrace_runner.services.score import ScoreServicer
from headrace_runner.services.tokenize import TokenizeServicer
from headrace_runner.starting import Start
from headrace_runner.text_state import TextRunner

_UNKNOWN_CONTEXT = 4096
"""Tokens, for a model that does not say how many it was made for."""


def prepare(config: RunnerConfig, machine: Machine, report: ReportWriter, start: Start) -> Served:
    """Reads all of the model but its weights. Raises ModelCorrupt and UnsupportedModel."""
    model_config = read_json(config.model_dir, "config.json")
    if "model_type" not in model_config:
        raise ModelCorrupt("config.json is missing, or names no model type", file="config.json")
    tokenizer = Tokenizer.load(config.model_dir)
    template = ChatTemplate.load(config.model_dir, tokenizer.special_tokens)
    facts = read_facts(config.model_dir)
    with start.lines():
        dtype = text_weights_type(
            config,
            machine,
            facts["parameters"],
            facts["tensor_bytes"],
            partial(cpu.why_not, model_config),
        )

    def load_model() -> LoadedModel:
        with start.part(names.SPAN_LOAD_WEIGHTS) as span:
            loaded = load(config.model_dir, dtype, on_progress)
            span.set_attribute(names.HEADRACE_WEIGHTS, loaded.weights)
            span.set_attribute(names.HEADRACE_WEIGHTS_BYTES, loaded.weights_bytes)
        start.warms_up()
        return loaded

    def on_progress(fraction: float) -> None:
        engine.check_wanted()
        report.loading(fraction)

    limits = Limits(
        config.max_concurrency,
        config.kv_cache,
        config.prefix_cache,
        drafts=config.drafts,
        adapters=config.max_adapters,
    )
    engine = TextEngine(load_model, tokenizer, limits)
    made_for = facts["context_length"] or _UNKNOWN_CONTEXT
    runner = TextRunner(
        config=config,
        tokenizer=tokenizer,
        template=template,
        markup=load_markup(config.model_dir, template, tokenizer),
        engine=engine,
        context_length=min(config.context or made_for, made_for),
        loaded=asyncio.get_running_loop().create_future(),
        on_drain=report.draining,
    )

    servicers = {
        "headrace.v1.CompletionService": CompletionServicer(runner),
        "headrace.v1.TokenizeService": TokenizeServicer(runner),
        "headrace.v1.ScoreService": ScoreServicer(runner),
    }
    return Served(runner, servicers, {"context_length": runner.context_length})
