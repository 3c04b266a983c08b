"""Memory that runs short: requests wait for room, and where it fails the newest one ends."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from headrace.errors import InsufficientMemory, InternalError
from headrace_runner.engine.stream import EventStream
from headrace_runner.engine.text import pace, worker
from headrace_runner.engine.text.engine import TextEngine
from headrace_runner.engine.text.flat_layout import FlatLayout
from headrace_runner.engine.text.prefix_cache import Tokens
from headrace_runner.engine.text.request import Event, Finished, GenerationRequest
from headrace_runner.engine.text.sampling import SamplingParams, choice_seed
from headrace_runner.models.load import LoadedModel
from headrace_runner.models.tokenizer import Tokenizer
from tests.unit.engine.engines import (
    ENDLESS,
    NO_MEMORY,
    PROMPT,
    Watched,
    a_step_ahead,
    first_token,
    read,
    request,
    running,
    tokens_of,
)
from tests.unit.engine.tiny import GREEDY, alone, loader

TOKEN = 512
"""Bytes of the tiny model's keys and values for one token."""
LONG = 150
PREFILL = range(5, 100)
"""Tokens of an input that is no step of a few rows."""

Load = Callable[[], LoadedModel]


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture(params=[False, True], ids=["read at once", "a step ahead"])
def load(request: pytest.FixtureRequest, watched: Watched) -> Load:
    load: Load = loader(lambda: watched)
    return a_step_ahead(load) if request.param else load


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is measured after every step."""
    monkeypatch.setattr(worker, "_MEASURE_EVERY", 0.0)


def at(tokens: range | int, time: int = 1) -> Callable[[int], bool]:
    """Short of memory once: at the so manieth input of so many tokens."""
    sizes = range(tokens, tokens + 1) if isinstance(tokens, int) else tokens
    seen = 0

    def short(count: int) -> bool:
        nonlocal seen
        seen += count in sizes
        return count in sizes and seen == time

    return short


def others() -> list[GenerationRequest]:
    samplings = (GREEDY, SamplingParams(seed=3), SamplingParams(seed=4, presence_penalty=1.0))
    return [request([7, i], LONG, each) for i, each in enumerate(samplings)]


def together(
    engine: TextEngine, watched: Watched, requests: list[GenerationRequest]
) -> list[EventStream[Event]]:
    """Submits requests while the first of them is held, so that they run side by side."""
    watched.go_on.clear()
    streams = [engine.submit(each) for each in requests]
    watched.go_on.set()
    return streams


async def fails(stream: EventStream[Event]) -> list[Event]:
    """What comes before the end for want of memory."""
    events: list[Event] = []
    try:
        async for event in stream:
            events.append(event)  # noqa: PERF401 - a comprehension would lose them
    except InsufficientMemory:
        return events
    raise AssertionError("it did not fail")


async def go_on(model: Any, engine: TextEngine, streams: list[EventStream[Event]]) -> None:
    """These streams of `others` give what they would have alone, and the engine serves on."""
    for each, stream in zip(others(), streams, strict=False):
        assert tokens_of(await read(stream)) == alone(model, each.prompt, each.sampling, LONG)
    assert tokens_of(await read(engine.submit(request()))) == alone(model, PROMPT, GREEDY, 10)
    await engine.stop()
    assert not engine.failed.done()
    assert engine.stats.kv_reserved_bytes == 0


async def test_the_newest_ends_where_its_prompt_finds_no_memory(
    tokenizer: Tokenizer, model: Any, watched: Watched, load: Load
) -> None:
    async with running(tokenizer, load) as engine:
        watched.short_of_memory = at(PREFILL)
        newest = request(list(range(40)), LONG)
        *streams, failing = together(engine, watched, [*others(), newest])
        assert tokens_of(await fails(failing)) == []
        await go_on(model, engine, streams)


async def test_the_newest_ends_where_a_step_finds_no_memory(
    tokenizer: Tokenizer, model: Any, watched: Watched, load: Load
) -> None:
    async with running(tokenizer, load) as engine:
        watched.short_of_memory = at(4, 8)
        # It has no prefill: its first step is that of four rows.
        *streams, failing = together(engine, watched, [*others(), request([9], LONG)])
        had = tokens_of(await fails(failing))
        assert 5 < len(had) < 9
        assert had == alone(model, [9], GREEDY, len(had))
        await go_on(model, engine, streams)


async def test_the_newest_ends_though_an_older_one_asks_for_memory(
    tokenizer: Tokenizer,
    model: Any,
    watched: Watched,
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "START", -math.inf)  # The newer one begins at once.
    async with running(tokenizer, load) as engine:
        older, newer = request([5] * 300), request([6], LONG)
        # The older prompt is still being computed, and the newer row decodes beside it.
        watched.short_of_memory = at(PREFILL, 9)
        stays, failing = together(engine, watched, [older, newer])
        assert tokens_of(await fails(failing))
        assert tokens_of(await read(stays)) == alone(model, older.prompt, GREEDY, 10)
        await go_on(model, engine, [])


async def test_one_after_the_other_ends_until_it_is_enough(
    tokenizer: Tokenizer, model: Any, watched: Watched, load: Load
) -> None:
    async with running(tokenizer, load) as engine:
        faults = at(3, 5), at(2, 20)
        watched.short_of_memory = lambda tokens: any(fault(tokens) for fault in faults)
        stays, second, first = together(engine, watched, others())
        assert len(tokens_of(await fails(first))) < len(tokens_of(await fails(second)))
        await go_on(model, engine, [stays])


@pytest.mark.parametrize("tokens", [PREFILL, 1], ids=["prefill", "decode"])
async def test_one_that_is_alone_ends_too_and_the_next_one_runs(
    tokenizer: Tokenizer, model: Any, watched: Watched, load: Load, tokens: range | int
) -> None:
    async with running(tokenizer, load) as engine:
        watched.short_of_memory = at(tokens, 2)
        await fails(engine.submit(request([8] * 40)))
        again = engine.submit(request([8] * 40))
        assert tokens_of(await read(again)) == alone(model, [8] * 40, GREEDY, 10)
        await go_on(model, engine, [])


async def test_all_choices_of_the_newest_end_and_those_of_others_go_on(
    tokenizer: Tokenizer, model: Any, watched: Watched, load: Load
) -> None:
    sampling = SamplingParams(seed=5)
    async with running(tokenizer, load, max_rows=8) as engine:
        watched.short_of_memory = at(5, 6)
        requests = [request(None, LONG, sampling, choices=2), request([4], LONG, choices=3)]
        stays, failing = together(engine, watched, requests)
        assert tokens_of(await fails(failing))
        events = await read(stays)
        for choice in range(2):
            own = replace(sampling, seed=choice_seed(5, choice))
            assert tokens_of(events, choice) == alone(model, PROMPT, own, LONG)
        await go_on(model, engine, [])


@pytest.mark.parametrize("leaves", ["ends", "is closed"])
async def test_memory_that_is_short_when_a_row_leaves_harms_nobody(
    tokenizer: Tokenizer,
    model: Any,
    watched: Watched,
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
    leaves: str,
) -> None:
    """What the row has computed is copied to be remembered: that may fail, too."""
    remember, calls = FlatLayout.remember_row, 0

    def short(self: FlatLayout, tokens: Tokens, row: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError(NO_MEMORY)
        remember(self, tokens, row)

    async with running(tokenizer, load) as engine:
        monkeypatch.setattr(FlatLayout, "remember_row", short)
        leaving = request([9], 20 if leaves == "ends" else ENDLESS)
        stays, leaver = together(engine, watched, [others()[0], leaving])
        if leaves == "ends":
            assert isinstance((await read(leaver))[-1], Finished)
        else:
            await first_token(leaver)
            leaver.close()
        await go_on(model, engine, [stays])
    assert calls > 1


class Reserved:
    """Reads streams and notes the largest reservation that was reported meanwhile."""

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine
        self.most = 0

    async def read(self, stream: EventStream[Event]) -> list[Event]:
        events = []
        async for event in stream:
            self.most = max(self.most, self._engine.stats.kv_reserved_bytes)
            events.append(event)
        return events


@pytest.mark.parametrize("together", [1, 2])
async def test_no_more_are_admitted_than_there_is_room_for(
    tokenizer: Tokenizer, model: Any, watched: Watched, load: Load, together: int
) -> None:
    each = TOKEN * (1 + 30)
    limit = each * (together + 1) - 1
    async with running(tokenizer, load, kv_bytes=limit, drafts=False) as engine:
        watched.computed.clear()
        assert engine.stats.kv_limit_bytes == limit
        reserved = Reserved(engine)
        streams = [engine.submit(request([i], 30)) for i in range(5)]
        results = await asyncio.gather(*map(reserved.read, streams))
        for i, events in enumerate(results):
            assert tokens_of(events) == alone(model, [i], GREEDY, 30)
        assert reserved.most == each * together
        await engine.stop()
        assert engine.stats.kv_reserved_bytes == 0
    assert max(rows for rows, _ in watched.computed) == together


async def test_each_choice_needs_room(
    tokenizer: Tokenizer, model: Any, watched: Watched, load: Load
) -> None:
    each = TOKEN * (1 + 30)
    async with running(tokenizer, load, kv_bytes=3 * each, drafts=False) as engine:
        watched.computed.clear()
        reserved = Reserved(engine)
        streams = [engine.submit(request([i], 30, choices=2)) for i in range(2)]
        for events in await asyncio.gather(*map(reserved.read, streams)):
            assert tokens_of(events, 0) == tokens_of(events, 1) != []
        assert reserved.most == 2 * each
    assert max(rows for rows, _ in watched.computed) == 2


async def test_one_over_the_limit_runs_when_it_is_alone(
    tokenizer: Tokenizer, model: Any, load: Load
) -> None:
    async with running(tokenizer, load, kv_bytes=TOKEN * 20) as engine:
        reserved = Reserved(engine)
        streams = [engine.submit(request([i], length)) for i, length in enumerate((10, 100, 10))]
        results = await asyncio.gather(*map(reserved.read, streams))
        assert [len(tokens_of(events)) for events in results] == [10, 100, 10]
        assert reserved.most == TOKEN * 101
        finished = [events[-1] for events in results]
        ends = [end.at for end in finished if isinstance(end, Finished)]
        assert ends == sorted(ends)  # It waited for the first, and the last one for it.


@pytest.mark.parametrize("start", ["faulty", "over"])
async def test_one_that_ends_at_its_start_holds_no_room(
    tokenizer: Tokenizer, model: Any, load: Load, start: str
) -> None:
    async with running(tokenizer, load, kv_bytes=TOKEN * 20) as engine, asyncio.timeout(10):
        if start == "faulty":
            with pytest.raises(InternalError):
                await read(engine.submit(replace(request(max_tokens=15), prompt=[])))
        else:  # It was resumed behind its end.
            (*_, finished) = await read(engine.submit(request(max_tokens=15, resume=((5,) * 15,))))
            assert isinstance(finished, Finished)
        following = engine.submit(request())
        assert tokens_of(await read(following)) == alone(model, PROMPT, GREEDY, 10)
