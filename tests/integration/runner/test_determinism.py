"""B5: the same seed draws the same tokens, wherever and however often a request begins."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headrace.v1.completion_pb2 import (
    FinishReason,
    LogprobsOptions,
    SamplingOptions,
    StopOptions,
    StreamCompletionRequest,
)
from headrace.v1.tokenize_pb2 import TokenizeRequest
from tests.integration.runner.api import ENDLESS, MODEL, Api, prompt, tokens

SAMPLINGS = {
    "greedy": SamplingOptions(temperature=0),
    "nucleus": SamplingOptions(temperature=0.8, top_p=0.9, seed=42),
    "penalised": SamplingOptions(
        temperature=0.8,
        top_k=50,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        presence_penalty=0.2,
        penalty_window=12,
        seed=43,
    ),
}


def sampled(*quick: str) -> pytest.MarkDecorator:
    """With each way of sampling; those that are not quick are for the slow suite."""
    return pytest.mark.parametrize(
        "sampling",
        [
            pytest.param(options, id=name, marks=() if name in quick else pytest.mark.slow)
            for name, options in SAMPLINGS.items()
        ],
    )


def story(sampling: SamplingOptions, **fields: Any) -> StreamCompletionRequest:
    fields = {"stop": ENDLESS} | fields
    return prompt("The old lighthouse keeper said:", 16, sampling=sampling, **fields)


@sampled("greedy", "penalised")
async def test_b5_the_same_alone_in_a_batch_and_in_another_process(
    api: Api, fresh: Api, sampling: SamplingOptions
) -> None:
    alone = await api.complete(story(sampling))
    others = [
        prompt("Neighbour " * i, 16, sampling=SamplingOptions(seed=i), stop=ENDLESS)
        for i in range(1, 8)
    ]
    together = await asyncio.gather(*map(api.complete, [*others, story(sampling)]))
    restarted = await fresh.complete(story(sampling))
    for answer in (together[-1], restarted):
        assert (answer.text, answer.token_ids) == (alone.text, alone.token_ids)


async def goes_on(api: Api, fresh: Api, request: StreamCompletionRequest, cuts: int) -> None:
    """Interrupts the request behind some of its messages; another process goes on each time."""
    whole = await api.complete(request)
    borders = [(0, 0), *whole.output.borders]
    chosen = [borders[i * (len(borders) - 1) // cuts] for i in range(cuts + 1)]
    resumed = []
    for sent, _ in chosen:
        later = StreamCompletionRequest()
        later.CopyFrom(request)
        later.resume_token_ids.extend(whole.token_ids[:sent])
        resumed.append(later)
    answers = await asyncio.gather(*map(fresh.complete, resumed))
    for (sent, characters), answer in zip(chosen, answers, strict=True):
        assert answer.token_ids == whole.token_ids[sent:]
        assert whole.text[:characters] + answer.text == whole.text
        assert answer.choice == whole.choice
        assert answer.started.prompt_tokens == whole.started.prompt_tokens
        expected = [each.logprob for each in whole.logprobs[sent:]]
        assert [each.logprob for each in answer.logprobs] == pytest.approx(expected, abs=1e-3)


@sampled("greedy", "penalised")
async def test_b5_the_same_when_it_is_resumed(
    api: Api, fresh: Api, sampling: SamplingOptions
) -> None:
    request = story(sampling, logprobs=LogprobsOptions(enabled=True, top=2))
    await goes_on(api, fresh, request, cuts=4)


@sampled("penalised")
async def test_b5_several_choices_go_on_each_from_its_own_place(
    api: Api, fresh: Api, sampling: SamplingOptions
) -> None:
    """One has sent nothing, one some, one all: its end is not drawn again."""
    request = story(sampling, n=3, logprobs=LogprobsOptions(enabled=True))
    whole = await api.complete(request)
    borders = {choice: [(0, 0), *whole.outputs[choice].borders] for choice in range(3)}
    for turn in range(3):
        cuts = {
            choice: borders[choice][(0, len(borders[choice]) // 2, -1)[(choice + turn) % 3]]
            for choice in range(3)
        }
        later = StreamCompletionRequest()
        later.CopyFrom(request)
        for choice, (sent, _) in cuts.items():
            if sent:
                ids = whole.outputs[choice].token_ids[:sent]
                later.resume_choices.add(index=choice, token_ids=ids)
        answer = await fresh.complete(later)
        assert list(answer.completed.choices) == list(whole.completed.choices)
        assert answer.completed.usage.output_tokens == whole.completed.usage.output_tokens
        for choice, (sent, characters) in cuts.items():
            output, expected = answer.outputs[choice], whole.outputs[choice]
            assert output.token_ids == expected.token_ids[sent:]
            assert expected.text[:characters] + output.text == expected.text
            logprobs = [each.logprob for each in expected.logprobs[sent:]]
            assert [e.logprob for e in output.logprobs] == pytest.approx(logprobs, abs=1e-3)


@sampled("nucleus")
async def test_b5_a_stop_string_is_found_over_the_place_of_the_cut(
    api: Api, fresh: Api, sampling: SamplingOptions
) -> None:
    text = (await api.complete(story(sampling))).text
    at = len(text) * 2 // 3
    stop = text[at : at + 9]  # Of several tokens.
    options = StopOptions(strings=[stop], ignore_eos=True, include_stop=True)
    stopped = await api.complete(story(sampling, stop=options))
    assert stopped.text == text[: text.index(stop)] + stop
    assert stopped.choice.finish_reason == FinishReason.FINISH_REASON_STOP
    await goes_on(api, fresh, story(sampling, stop=options), cuts=4)


async def test_b5_a_character_is_completed_behind_the_cut(api: Api, fresh: Api) -> None:
    snowman = list((await api.tokenize.Tokenize(TokenizeRequest(model=MODEL, text="☃"))).token_ids)
    assert len(snowman) == 3
    # The bias leaves these tokens alone; the penalty on the last two makes them take turns.
    sampling = SamplingOptions(
        temperature=0,
        logit_bias=dict.fromkeys(snowman, 1000.0),
        repetition_penalty=10,
        penalty_window=2,
    )
    for cut in range(9):
        request = tokens(snowman[1:], 8, sampling=sampling, stop=ENDLESS)
        request.resume_token_ids.extend((snowman * 3)[:cut])
        answer = await fresh.complete(request)
        assert answer.token_ids == (snowman * 3)[cut:8]
        whole_ones = cut // 3
        assert answer.text == ("☃☃\ufffd"[whole_ones:] if cut < 8 else "")
