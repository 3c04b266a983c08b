"""Scoring: every log-probability is that of one pass of mlx-lm over prompt and continuation."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from headrace.errors import InsufficientMemory
from headrace_runner.engine.stream import EventStream
from headrace_runner.engine.text import layouts
from headrace_runner.engine.text.engine import TextEngine
from headrace_runner.engine.text.layouts import choose_layout
from headrace_runner.engine.text.request import (
    Delta,
    Event,
    Score,
    Scored,
    ScoringRequest,
    Started,
)
from headrace_runner.engine.text.scoring import Scorer, Scoring
from headrace_runner.models.fast_paths import Head
from headrace_runner.models.insides import new_caches
from headrace_runner.models.tokenizer import Tokenizer
from tests.unit.engine.engines import (
    ENDLESS,
    Watched,
    a_step_ahead,
    first_token,
    read,
    request,
    running,
    tokens_of,
)
from tests.unit.engine.tiny import GREEDY, VOCABULARY, alone, loader, tiny_model

LENGTHS = (1, 1, 2, 3, 7, 40, 1, 5)
"""Tokens of continuations: some fit into a pass together, one into none."""


def some(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCABULARY), k=count)


def scoring(
    prompt: Sequence[int], continuations: Sequence[Sequence[int]], top: int = 0, **fields: Any
) -> ScoringRequest:
    given = tuple(map(tuple, continuations))
    return ScoringRequest("s", list(prompt), given, top_logprobs=top, **fields)


def expected(model: Any, prompt: Sequence[int], continuation: Sequence[int]) -> tuple[Any, Any]:
    """Log-probabilities of all tokens, [places, vocabulary], by one pass in mlx-lm's own way."""
    tokens = mx.array([*prompt, *continuation])
    logits = model(tokens[None], cache=new_caches(model))[0, len(prompt) - 1 : -1]
    found = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return found, mx.take_along_axis(found, tokens[len(prompt) :, None], axis=-1)[:, 0]


def check(model: Any, asked: ScoringRequest, scores: Sequence[Score]) -> None:
    skipped = asked.skipped or (0,) * len(asked.continuations)
    for whole, skip, score in zip(asked.continuations, skipped, scores, strict=True):
        before, continuation = [*asked.prompt, *whole[:skip]], whole[skip:]
        everything, own = expected(model, before, continuation)
        assert [each.token for each in score.logprobs] == pytest.approx(own.tolist(), abs=1e-3)
        best = mx.argmax(everything, axis=-1).tolist()
        assert score.greedy == (best == list(continuation))
        for each, line in zip(score.logprobs, everything, strict=True):
            assert len(each.top) == asked.top_logprobs
            for token, value in each.top:
                assert value == pytest.approx(line[token].item(), abs=1e-3)
            likeliest = sorted(line.tolist(), reverse=True)[: len(each.top)]
            assert [value for _, value in each.top] == pytest.approx(likeliest, abs=1e-3)


def new_scorer(
    model: Any, most: int = 512, prefix_bytes: int = 0, *, on_cpu: bool = True
) -> Scorer:
    layout = choose_layout(model, on_cpu=on_cpu, prefix_bytes=prefix_bytes)
    return Scorer(layout, most=most, vocabulary=VOCABULARY)


def run(scorer: Scorer, budget: int = ENDLESS) -> dict[int, Scored]:
    """Until all are over."""
    found: dict[int, Scored] = {}
    for _ in range(10_000):
        _, had = scorer.step(budget)
        over = [each for each in had if each.over]
        found |= {each.uid: each.result(0) for each in over}
        scorer.drop({each.uid for each in over})
        if not scorer:
            return found
    raise AssertionError("it does not end")


@pytest.mark.parametrize("budget", [1, 3, 16, ENDLESS])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "lfm2"])
def test_scores_are_those_of_a_pass_over_everything(architecture: str, budget: int) -> None:
    model = tiny_model(architecture)
    reference = tiny_model(architecture)
    scorer = new_scorer(model, most=24)
    prompt = some(37, 1)
    asked = [
        scoring(prompt, [some(length, 2 + length) for length in LENGTHS], top=3),
        scoring(prompt[:1], [some(2, 3)]),
        scoring(some(50, 4), [some(9, 5), some(30, 6), some(1, 7)], top=1, skipped=(2, 29, 0)),
    ]
    for uid, each in enumerate(asked):
        scorer.add(Scoring(uid, each))
    found = run(scorer, budget)
    for uid, each in enumerate(asked):
        check(reference, each, found[uid].scores)


@pytest.mark.parametrize("tied", [True, False])
def test_scores_are_the_same_in_the_ways_of_a_gpu(tied: bool) -> None:
    scorer = new_scorer(tiny_model(tie_word_embeddings=tied), most=24, on_cpu=False)
    asked = scoring(some(37, 1), [some(length, 2) for length in LENGTHS], top=3)
    scorer.add(Scoring(0, asked))
    check(tiny_model(tie_word_embeddings=tied), asked, run(scorer)[0].scores)


def test_a_head_of_another_name_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "trim_head", lambda model: Head())
    scorer = new_scorer(tiny_model(), most=24)
    asked = scoring(some(37, 1), [some(length, 2) for length in LENGTHS])
    scorer.add(Scoring(0, asked))
    check(tiny_model(), asked, run(scorer)[0].scores)


def test_a_pass_has_no_more_than_it_may() -> None:
    model = Watched()
    scorer = new_scorer(model, most=24)
    scorer.add(Scoring(0, scoring(some(60, 1), [some(length, 2) for length in LENGTHS])))
    model.computed.clear()
    run(scorer, 10)
    widths = [shape[0] for shape in model.computed]
    assert max(widths) == 10
    # The prompt once, and of each continuation all tokens but the last.
    assert sum(widths) == 60 + sum(LENGTHS) - len(LENGTHS)


def test_what_is_short_takes_one_pass_for_several_requests() -> None:
    model = Watched()
    scorer = new_scorer(model)
    for uid in range(5):
        scorer.add(Scoring(uid, scoring(some(6, uid), [some(3, 9), some(1, 8)])))
    model.computed.clear()
    found = run(scorer)
    assert len(model.computed) == 1
    assert all(each.passes == 1 for each in found.values())


def test_a_continuation_is_greedy_if_it_is_what_would_be_written(model: Any) -> None:
    prompt = some(12, 1)
    written = alone(model, prompt, GREEDY, 6)
    other = [*written[:5], (written[5] + 1) % VOCABULARY]
    asked = scoring(prompt[:11], [[prompt[11], *each] for each in (written, other, written[:1])])
    scorer = new_scorer(tiny_model())
    scorer.add(Scoring(0, replace(asked, skipped=(1, 1, 1))))
    assert [score.greedy for score in run(scorer)[0].scores] == [True, False, True]
    # What is skipped is not what would be written.
    scorer.add(Scoring(1, asked))
    assert not any(score.greedy for score in run(scorer)[1].scores)


@pytest.mark.parametrize("architecture", ["llama", "lfm2"])
def test_a_prompt_is_remembered_and_found_again(architecture: str) -> None:
    scorer = new_scorer(tiny_model(architecture), prefix_bytes=1 << 24)
    asked = scoring(some(40, 1), [some(4, 2), some(1, 3)])
    first = Scoring(0, asked)
    scorer.add(first)
    one = run(scorer)[0]
    again = Scoring(1, asked)
    scorer.add(again)
    other = run(scorer)[1]
    assert (first.cached, again.cached) == (0, 39)
    for before, after in zip(one.scores, other.scores, strict=True):
        assert [each.token for each in after.logprobs] == pytest.approx(
            [each.token for each in before.logprobs], abs=1e-4
        )


def test_no_row_changes_another() -> None:
    """The same score, whatever else is in the pass: up to rounding."""
    scorer = new_scorer(tiny_model())
    prompt, continuation = some(20, 1), some(6, 2)
    scorer.add(Scoring(0, scoring(prompt, [continuation])))
    alone_ = run(scorer)[0].scores[0]
    scorer.add(Scoring(1, scoring(prompt, [some(5, 3), continuation, some(9, 4)])))
    scorer.add(Scoring(2, scoring(some(31, 5), [continuation])))
    beside = run(scorer)[1].scores[1]
    assert [each.token for each in beside.logprobs] == pytest.approx(
        [each.token for each in alone_.logprobs], abs=1e-4
    )


def scored(events: list[Event]) -> Scored:
    assert [type(event) for event in events] == [Started, Scored]
    (last,) = events[1:]
    assert isinstance(last, Scored)
    return last


@pytest.mark.parametrize("ways", [lambda load: load, a_step_ahead])
async def test_streams_and_scores_share_the_engine(
    tokenizer: Tokenizer, model: Any, ways: Any
) -> None:
    async with running(tokenizer, ways(loader())) as engine:
        await streams_and_scores(engine, model)


async def streams_and_scores(engine: TextEngine, model: Any) -> None:
    requests = [request([i, i + 1], 30) for i in range(3)]
    streams = [engine.submit(each) for each in requests]
    asked = [scoring(some(30, i), [some(5, 7), some(20, 8)]) for i in range(3)]
    scores = [engine.submit(each) for each in asked]
    results = await asyncio.gather(*map(read, [*streams, *scores]))
    for each, events in zip(requests, results[:3], strict=True):
        assert tokens_of(events) == alone(model, each.prompt, GREEDY, 30)
    for ask, events in zip(asked, results[3:], strict=True):
        check(tiny_model(), ask, scored(events).scores)
    assert engine.active == 0
    assert engine.stats.prompts == 6
    assert engine.stats.prompt_tokens == sum(len(r.prompt) for r in requests) + 3 * 55


async def tokens_so_far(stream: EventStream[Event]) -> int:
    while not isinstance(event := await anext(stream), Delta):
        pass
    return event.output_tokens


async def test_a_large_score_does_not_hold_up_streams_nor_prompts(tokenizer: Tokenizer) -> None:
    model = Watched()
    async with running(tokenizer, loader(lambda: model), drafts=False) as engine:
        stream = engine.submit(request([1, 2], ENDLESS))
        await first_token(stream)
        large = engine.submit(scoring(some(2000, 1), [some(200, i) for i in range(100)]))
        assert isinstance(await anext(large), Started)
        # A prompt that comes later has its turn too.
        assert len(tokens_of(await read(engine.submit(request(some(60, 2), 5))))) == 5
        before = len(model.computed)
        first = last = await tokens_so_far(stream)
        while len(model.computed) < before + 300:
            last = await tokens_so_far(stream)
        passes = model.computed[before:]
        assert max(shape[0] for shape in passes) <= 16 + 2
        # There is a step of the stream after each pass of the score; the last are on their way.
        assert last - first >= 300 // 2 - 20
        assert engine.active == 2
        large.close()
        stream.close()


async def test_a_score_that_is_given_up_frees_its_place(tokenizer: Tokenizer) -> None:
    async with running(tokenizer, loader(), max_rows=1) as engine:
        large = engine.submit(scoring(some(2000, 1), [some(500, i) for i in range(200)]))
        await anext(large)
        waiting = engine.submit(scoring([1, 2], [[3]]))
        large.close()
        scored(await read(waiting))
        assert engine.active == 0
        while engine.stats.kv_reserved_bytes:  # noqa: ASYNC110 - told after the answer
            await asyncio.sleep(0.005)


async def test_scores_wait_for_memory_in_line(tokenizer: Tokenizer) -> None:
    async with running(tokenizer, loader(), kv_bytes=1) as engine:
        asked = [scoring(some(20, i), [some(3, 1)]) for i in range(4)]
        for events in await asyncio.gather(*(read(engine.submit(each)) for each in asked)):
            assert math.isfinite(scored(events).scores[0].logprobs[0].token)


async def test_lack_of_memory_ends_the_newest_alone(tokenizer: Tokenizer) -> None:
    model = Watched()
    async with running(tokenizer, loader(lambda: model)) as engine:
        model.go_on.clear()
        stream = engine.submit(request([1, 2], 20))
        small = scoring(some(5, 1), [some(3, 2)])
        one, other = engine.submit(small), engine.submit(scoring(some(5, 3), [some(12, 4)]))
        failed = False

        def short(tokens: int) -> bool:
            nonlocal failed
            failed |= tokens > 8  # The pass with both.
            return tokens > 8

        model.short_of_memory = short
        model.go_on.set()
        assert len(tokens_of(await read(stream))) == 20
        check(tiny_model(), small, scored(await read(one)).scores)
        with pytest.raises(InsufficientMemory):
            await read(other)
        assert failed
        assert engine.active == 0
