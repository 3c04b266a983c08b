"""The engine's thread: requests come and go, and whatever happens every stream ends."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import groupby
from typing import Any

import pytest

from headrace.errors import Draining, InternalError, ModelCorrupt, Unavailable
from headrace_runner.engine import engine as engine_module
from headrace_runner.engine.text import worker
from headrace_runner.engine.text.engine import TextEngine
from headrace_runner.engine.text.output import Output
from headrace_runner.engine.text.request import (
    ChoiceEnd,
    Delta,
    Finish,
    Finished,
    Prefill,
    Started,
)
from headrace_runner.engine.text.sampling import SamplingParams
from headrace_runner.engine.text.worker import Limits
from headrace_runner.models.load import LoadedModel
from headrace_runner.models.tokenizer import Tokenizer
from tests.unit.engine.engines import (
    ENDLESS,
    Watched,
    first_token,
    read,
    request,
    running,
    tokens_of,
    until,
)
from tests.unit.engine.tiny import GREEDY, alone, loader


@pytest.fixture
async def engine(tokenizer: Tokenizer) -> AsyncIterator[TextEngine]:
    async with running(tokenizer, loader()) as engine:
        yield engine


@pytest.fixture
def watched() -> Watched:
    return Watched()


async def test_a_stream_has_its_events_in_order(engine: TextEngine, model: Any) -> None:
    events = await read(engine.submit(request(list(range(40)))))
    kinds = [type(event) for event in events]
    assert [kind for kind, _ in groupby(kinds)] == [Started, Prefill, Delta, Finished]
    assert (kinds.count(Started), kinds.count(Finished)) == (1, 1)
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert finished.choices == (ChoiceEnd(Finish.LENGTH, None, 10),)
    assert started.at <= finished.first_token_at <= finished.at
    assert tokens_of(events) == alone(model, list(range(40)), GREEDY, 10)


async def test_many_requests_take_turns_and_draw_what_they_draw_alone(
    engine: TextEngine, model: Any
) -> None:
    requests = [
        request([i, i + 1], 5 + i, GREEDY if i % 2 else SamplingParams(seed=i)) for i in range(12)
    ]
    streams = [engine.submit(each) for each in requests]
    assert engine.active == 12
    results = await asyncio.gather(*map(read, streams))
    for each, events in zip(requests, results, strict=True):
        expected = alone(model, each.prompt, each.sampling, each.max_tokens)
        assert tokens_of(events) == expected
    assert (engine.active, engine.waiting, engine.requests_total) == (0, 0, 12)
    assert engine.stalled_for() == 0


async def test_what_was_freed_is_given_back_once_nothing_has_come_for_a_while(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_REST_AFTER", 0.5)
    idle: list[int] = []
    rested = threading.Event()
    async with running(tokenizer, loader()) as engine:

        def give_back() -> None:
            idle.append(engine.active)
            rested.set()

        monkeypatch.setattr(worker, "give_back", give_back)
        assert await asyncio.to_thread(rested.wait, 30)
        assert len(idle) == 1
        rested.clear()
        for _ in range(5):  # One after another: nobody waits for memory between them.
            await read(engine.submit(request([1, 2])))
        assert len(idle) == 1
        first = engine.submit(request([1], ENDLESS))
        await first_token(first)
        await asyncio.to_thread(rested.wait, 0.8)
        assert len(idle) == 1, "one is under way"
        first.close()
        assert await asyncio.to_thread(rested.wait, 30)
        assert idle == [0, 0]


async def test_no_more_rows_than_allowed(tokenizer: Tokenizer, watched: Watched) -> None:
    async with running(tokenizer, loader(lambda: watched), max_rows=3, drafts=False) as engine:
        watched.computed.clear()
        await asyncio.gather(*(read(engine.submit(request([5, i]))) for i in range(8)))
    assert max(rows for rows, _ in watched.computed) == 3


async def test_the_more_urgent_go_first_and_equals_in_their_order(tokenizer: Tokenizer) -> None:
    async with running(tokenizer, loader(), max_rows=1) as engine:
        first = engine.submit(request([1], ENDLESS))
        await first_token(first)
        order = (0, 5, -5, 5, 0)
        streams = [engine.submit(request(priority=each)) for each in order]
        first.close()
        results = await asyncio.gather(*map(read, streams))
    begun = [next(e.at for e in events if isinstance(e, Started)) for events in results]
    assert sorted(range(5), key=lambda i: begun[i]) == [1, 3, 0, 4, 2]


async def test_b1_a_row_is_free_by_the_next_step(engine: TextEngine) -> None:
    stays, leaves = engine.submit(request([1], ENDLESS)), engine.submit(request([2], ENDLESS))
    await first_token(stays)
    await first_token(leaves)
    assert engine.running == 2
    leaves.close()
    assert engine.active == 1
    # One step may be on its way already, and its events not yet read.
    assert await until(lambda: engine.running == 1, stays) <= 3
    stays.close()


async def test_a_request_that_waits_leaves_at_once(tokenizer: Tokenizer, watched: Watched) -> None:
    async with running(tokenizer, loader(lambda: watched), max_rows=1) as engine:
        runs, waits = engine.submit(request([1], ENDLESS)), engine.submit(request([2] * 30))
        await first_token(runs)
        assert (engine.running, engine.waiting) == (1, 1)
        waits.close()
        assert engine.waiting == 0
        last = engine.submit(request([3] * 7))
        runs.close()
        await read(last)
    assert (29, 1) not in watched.computed
    assert (6, 1) in watched.computed


async def test_b2_a_long_prefill_ends_with_its_chunk(
    tokenizer: Tokenizer, watched: Watched
) -> None:
    async with running(tokenizer, loader(lambda: watched, prefill_chunk=4)) as engine:
        long = engine.submit(request([7] * 4000))
        async for event in long:
            if isinstance(event, Prefill):
                break
        long.close()
        assert tokens_of(await read(engine.submit(request())))
    assert sum(tokens for tokens, _ in watched.computed if tokens == 4) < 2000


async def test_a_fault_in_the_load_is_the_callers(tokenizer: Tokenizer) -> None:
    def load() -> LoadedModel:
        raise ModelCorrupt(file="model.safetensors")

    engine = TextEngine(load, tokenizer, Limits(1))
    async with asyncio.timeout(20):
        with pytest.raises(ModelCorrupt):
            await engine.start()
        await engine.stop()
    assert not engine.failed.done()


async def test_a_model_that_cannot_make_a_token_never_starts(
    tokenizer: Tokenizer, watched: Watched
) -> None:
    watched.fault = ZeroDivisionError("no token")
    engine = TextEngine(loader(lambda: watched), tokenizer, Limits(1))
    async with asyncio.timeout(20):
        with pytest.raises(ZeroDivisionError):
            await engine.start()
        await engine.stop()


async def test_a_fault_in_a_step_ends_every_stream(tokenizer: Tokenizer, watched: Watched) -> None:
    async with running(tokenizer, loader(lambda: watched), max_rows=1) as engine:
        runs, waits = engine.submit(request([1], ENDLESS)), engine.submit(request([2]))
        await first_token(runs)
        watched.fault = RuntimeError("the device is gone")
        for stream in (runs, waits, engine.submit(request([3]))):
            with pytest.raises(Unavailable):
                await read(stream)
        assert await engine.failed is watched.fault
        assert engine.active == 0
        with pytest.raises(Unavailable):
            await read(engine.submit(request([4])))


async def test_b6_a_fault_of_one_request_is_that_requests_alone(
    tokenizer: Tokenizer, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = Output.push

    def failing(self: Output, token: int, logprobs: Any) -> Any:
        if self._request.id == "bad" and self.tokens == 2:
            raise ZeroDivisionError("a bug")
        return push(self, token, logprobs)

    monkeypatch.setattr(Output, "push", failing)
    others = [request([9, i], 20, GREEDY if i % 2 else SamplingParams(seed=i)) for i in range(7)]
    async with running(tokenizer, loader(), max_rows=8) as engine:
        streams = [engine.submit(other) for other in others]
        faults = [
            request(max_tokens=20, id="bad"),
            request(stop_strings=("",)),  # the stop matcher refuses it
            replace(request(), prompt=[]),  # the batch does
        ]
        for stream in [engine.submit(fault) for fault in faults]:
            with pytest.raises(InternalError):
                await read(stream)
        for other, stream in zip(others, streams, strict=True):
            expected = alone(model, other.prompt, other.sampling, 20)
            assert tokens_of(await read(stream)) == expected
        assert not engine.failed.done()


async def test_a_step_that_does_not_end_does_not_hold_up_the_stop(
    tokenizer: Tokenizer, watched: Watched
) -> None:
    async with running(tokenizer, loader(lambda: watched)) as engine:
        stream = engine.submit(request(max_tokens=ENDLESS))
        await first_token(stream)
        watched.go_on.clear()
        while engine.stalled_for() < 0.2:  # noqa: ASYNC110 - nothing tells of a step that hangs
            await asyncio.sleep(0.02)
        assert not await engine.stop(0.1)
        with pytest.raises(Draining):
            await read(stream)
        watched.go_on.set()


async def test_stop_ends_what_runs_and_what_waits(tokenizer: Tokenizer, watched: Watched) -> None:
    async with running(tokenizer, loader(lambda: watched), max_rows=1) as engine:
        runs, waits = engine.submit(request([1], ENDLESS)), engine.submit(request([2]))
        await first_token(runs)
        await engine.stop()
        for stream in (runs, waits, engine.submit(request([3]))):
            with pytest.raises(Draining):
                await read(stream)
        assert engine.active == 0
        assert not engine.failed.done()
    assert "mlx" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("fails", [False, True])
async def test_a_start_that_is_cancelled_harms_nobody(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def load() -> LoadedModel:
        entered.set()
        assert go_on.wait(30)
        if fails:
            raise ModelCorrupt(file="model.safetensors")
        loaded: LoadedModel = loader()()
        return loaded

    engine = TextEngine(load, tokenizer, Limits(1))
    async with asyncio.timeout(40):
        starting = asyncio.create_task(engine.start())
        await asyncio.to_thread(entered.wait)
        starting.cancel()
        await asyncio.wait({starting})
        go_on.set()
        await engine.stop()
    assert starting.cancelled()
    assert not engine.failed.done()
    del starting, engine
    gc.collect()  # An error that nobody has looked at is logged with its future's end.
    assert caplog.records == []


async def test_an_engine_that_never_started_can_be_stopped(tokenizer: Tokenizer) -> None:
    engine = TextEngine(loader(), tokenizer, Limits(1))
    async with asyncio.timeout(5):
        await engine.stop()


async def test_work_without_a_step_counts_as_stalled(
    tokenizer: Tokenizer, watched: Watched
) -> None:
    async with running(tokenizer, loader(lambda: watched)) as engine:
        await asyncio.sleep(0.05)
        assert engine.stalled_for() == 0  # Nothing to do is no stall.
        watched.go_on.clear()
        try:
            stream = engine.submit(request())
            await asyncio.sleep(0.2)
            assert 0.1 < engine.stalled_for() < 5
        finally:
            watched.go_on.set()
        await read(stream)
        assert engine.stalled_for() == 0


async def test_stats_count_tokens_and_memory(engine: TextEngine) -> None:
    await asyncio.gather(*(read(engine.submit(request([i] * 20, 7))) for i in range(3)))
    await engine.stop()
    assert (engine.stats.prompt_tokens, engine.stats.output_tokens) == (60, 21)
    # No row is left; what they computed is remembered.
    assert engine.stats.kv_bytes == engine.stats.prefix_bytes > 0
    assert engine.stats.kv_reserved_bytes == 0
    assert engine.stats.peak_bytes >= engine.stats.active_bytes > 0


async def test_stats_count_prompts_and_what_the_cache_knew_of_them(engine: TextEngine) -> None:
    for prompt in (list(range(20)), list(range(20)), [7] * 20):
        await read(engine.submit(request(prompt, 3)))
    await engine.stop()
    stats = engine.stats
    assert (stats.prompts, stats.cached_prompts) == (3, 1)
    assert 0 < stats.cached_tokens < 20


async def test_stats_have_every_step_by_its_time_and_its_rows(engine: TextEngine) -> None:
    began = time.perf_counter()
    await read(engine.submit(request(max_tokens=7)))
    await asyncio.gather(*(read(engine.submit(request([i] * 5, 9))) for i in range(3)))
    await engine.stop()
    seconds, rows = engine.stats.step_seconds, engine.stats.step_rows
    steps = sum(seconds.counts)
    # The three may have come one by one, or together; drafts may save steps of one that is alone.
    assert steps == sum(rows.counts) >= 2
    assert steps <= rows.sum <= 3 * steps
    assert 0 < seconds.sum <= time.perf_counter() - began
    for read_out in (seconds, rows):
        assert len(read_out.counts) == len(read_out.bounds) + 1
    assert rows.counts[rows.bounds.index(1)] >= 1, "the first was alone"
    assert not any(rows.counts[rows.bounds.index(8) :]), "nobody else was there"
