"""Readers that are slow: their rows wait for them, and nobody waits for their rows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from headrace_runner.engine.text import stream as stream_module
from headrace_runner.engine.text import worker
from headrace_runner.engine.text.engine import TextEngine
from headrace_runner.engine.text.request import Delta, Finished, GenerationRequest
from headrace_runner.engine.text.sampling import SamplingParams
from headrace_runner.engine.text.stream import TextStream
from headrace_runner.models.load import LoadedModel
from headrace_runner.models.tokenizer import Tokenizer
from tests.unit.engine.engines import (
    ENDLESS,
    PROMPT,
    a_step_ahead,
    first_token,
    read,
    request,
    running,
    tokens_of,
    until,
)
from tests.unit.engine.tiny import GREEDY, alone, loader

Load = Callable[[], LoadedModel]

BEHIND = 60
SAMPLED = SamplingParams(seed=11, temperature=0.8, top_p=0.9, frequency_penalty=0.4)


@pytest.fixture(params=[False, True], ids=["read at once", "a step ahead"])
def load(request: pytest.FixtureRequest) -> Load:
    load: Load = loader()
    return a_step_ahead(load) if request.param else load


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers fall behind sooner."""
    monkeypatch.setattr(stream_module, "BEHIND", BEHIND)


def submit(engine: TextEngine, request: GenerationRequest) -> TextStream:
    stream = engine.submit(request)
    assert isinstance(stream, TextStream)
    return stream


async def parked(engine: TextEngine, stream: TextStream, running: int = 0) -> None:
    """Return when a stream that nobody reads is out of the batch, where others are still."""
    while not (stream._behind and engine.running == running):  # noqa: ASYNC110 - nobody is told
        await asyncio.sleep(0.005)


async def test_a_stream_that_nobody_reads_waits_for_its_reader(
    tokenizer: Tokenizer, model: Any, load: Load
) -> None:
    async with running(tokenizer, load) as engine:
        stream = submit(engine, request(max_tokens=3 * BEHIND, sampling=SAMPLED))
        await parked(engine, stream)
        held = stream._waiting
        assert BEHIND < held < 2 * BEHIND
        assert (engine.active, engine.waiting, engine.stalled_for()) == (1, 1, 0)
        # It is out of the way of the others, which leave it as it is.
        other = await read(submit(engine, request([4], 100)))
        assert tokens_of(other) == alone(model, [4], GREEDY, 100)
        assert (stream._waiting, engine.stalled_for()) == (held, 0)
        events = await read(stream)
        assert isinstance(events[-1], Finished)
        assert tokens_of(events) == alone(model, PROMPT, SAMPLED, 3 * BEHIND)


async def test_it_comes_back_while_others_run(tokenizer: Tokenizer, model: Any, load: Load) -> None:
    async with running(tokenizer, load) as engine:
        steady = submit(engine, request([4], ENDLESS))
        await first_token(steady)
        slow = submit(engine, request(max_tokens=3 * BEHIND, sampling=SAMPLED))
        await until(lambda: slow._behind and engine.running == 1, steady)
        tokens: list[int] = []
        most = 0
        async for event in slow:
            if isinstance(event, Delta):
                most = max(most, slow._waiting)
                tokens += event.token_ids
                await anext(steady)  # So that it falls behind again and again.
        assert tokens == alone(model, PROMPT, SAMPLED, 3 * BEHIND)
        assert most < 2 * BEHIND
        steady.close()


async def test_all_choices_of_a_slow_reader_wait(
    tokenizer: Tokenizer, model: Any, load: Load
) -> None:
    async with running(tokenizer, load) as engine:
        stream = submit(engine, request(max_tokens=BEHIND, choices=3))
        await parked(engine, stream)
        events = await read(stream)
        expected = alone(model, PROMPT, GREEDY, BEHIND)
        assert [tokens_of(events, choice) for choice in range(3)] == [expected] * 3


async def test_two_that_wait_come_back_together(
    tokenizer: Tokenizer, model: Any, load: Load
) -> None:
    """Nothing is computed between their leaving and their return."""
    async with running(tokenizer, load) as engine:
        streams = [submit(engine, request([i], 2 * BEHIND, SAMPLED)) for i in range(2)]
        for stream in streams:
            await parked(engine, stream)
        results = await asyncio.gather(*map(read, streams))
        for i, events in enumerate(results):
            assert tokens_of(events) == alone(model, [i], SAMPLED, 2 * BEHIND)


async def test_one_that_waits_and_is_closed_leaves_nothing(
    tokenizer: Tokenizer, model: Any, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_MEASURE_EVERY", 0.0)
    async with running(tokenizer, load, max_rows=1) as engine:
        stream = submit(engine, request(max_tokens=ENDLESS))
        await parked(engine, stream)
        stream.close()
        assert (engine.active, engine.waiting) == (0, 0)
        assert tokens_of(await read(submit(engine, request([4])))) == alone(model, [4], GREEDY, 10)
        await engine.stop()
        assert engine.stats.kv_reserved_bytes == 0
        assert engine.stats.kv_bytes == engine.stats.prefix_bytes
