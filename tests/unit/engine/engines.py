"""Engines on the tiny model, and readers of their streams."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from mlx.nn.layers.base import Module

from headrace_runner.engine.stream import EventStream
from headrace_runner.engine.text.engine import TextEngine
from headrace_runner.engine.text.request import Delta, Event, GenerationRequest
from headrace_runner.engine.text.sampling import SamplingParams
from headrace_runner.engine.text.worker import Limits
from headrace_runner.models.load import LoadedModel
from headrace_runner.models.tokenizer import Tokenizer
from tests.unit.engine.tiny import GREEDY, tiny_model

ENDLESS = 1_000_000
PROMPT = [1, 2, 3]
NO_MEMORY = "[malloc] Unable to allocate 123 bytes."
"""How MLX says it on a CPU."""


class Watched(Module):
    """A model that counts its steps, and can be held or made to fail."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = (tiny_model(),)
        self.layers = self._model[0].layers
        self.computed: list[tuple[int, ...]] = []
        """Shape of every input: tokens of all rows, and 1."""
        self.go_on = threading.Event()
        self.go_on.set()
        self.fault: Exception | None = None
        self.short_of_memory: Callable[[int], bool] = lambda tokens: False
        """Says of each input, by how many tokens it has, whether there is no memory for it."""

    def __call__(self, inputs: Any, cache: Any) -> Any:
        assert self.go_on.wait(30)
        if self.fault is not None:
            raise self.fault
        if self.short_of_memory(inputs.shape[0]):
            raise RuntimeError(NO_MEMORY)
        self.computed.append(inputs.shape)
        return self._model[0](inputs, cache=cache)


def request(
    prompt: list[int] | None = None,
    max_tokens: int = 10,
    sampling: SamplingParams = GREEDY,
    priority: int = 0,
    **fields: Any,
) -> GenerationRequest:
    return GenerationRequest(
        id=fields.pop("id", "r"),
        prompt=prompt or PROMPT,
        max_tokens=max_tokens,
        sampling=sampling,
        ignore_eos=True,
        priority=priority,
        **fields,
    )


@asynccontextmanager
async def running(
    tokenizer: Tokenizer,
    load: Callable[[], LoadedModel],
    *,
    max_rows: int = 4,
    kv_bytes: int | None = None,
    prefix_bytes: int | None = None,
    drafts: bool = True,
    adapters: int = 8,
) -> AsyncIterator[TextEngine]:
    """An engine. Without `drafts` no input has more tokens than there are rows in a step."""
    limits = Limits(max_rows, kv_bytes, prefix_bytes, drafts=drafts, adapters=adapters)
    engine = TextEngine(load, tokenizer, limits)
    async with asyncio.timeout(60):
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()


def a_step_ahead(load: Callable[[], LoadedModel]) -> Callable[[], LoadedModel]:
    """The same model as on a device of its own, where a step is launched before one is read."""
    return lambda: replace(load(), on_cpu=False)


async def read(stream: EventStream[Event]) -> list[Event]:
    return [event async for event in stream]


def tokens_of(events: list[Event], choice: int = 0) -> list[int]:
    deltas = (event for event in events if isinstance(event, Delta))
    return [token for delta in deltas if delta.choice == choice for token in delta.token_ids]


async def first_token(stream: EventStream[Event]) -> None:
    async for event in stream:
        if isinstance(event, Delta):
            return


async def until(condition: Callable[[], bool], stream: EventStream[Event]) -> int:
    """Follow a stream until something has come about; gives the events that it took."""
    events = 0
    while not condition():
        await anext(stream)
        events += 1
    return events
