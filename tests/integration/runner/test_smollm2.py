"""What a runner on a real model answers."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from headrace.v1.common_pb2 import RunnerState
from headrace.v1.completion_pb2 import (
    FinishReason,
    LogprobsOptions,
    SamplingOptions,
    StopOptions,
)
from headrace.v1.tokenize_pb2 import DetokenizeRequest, TokenizeRequest
from headrace_runner.models.load import load
from tests.integration.runner.api import ENDLESS, MODEL, Answer, Api, chat, prompt, tokens

REFERENCE = "What is the capital of France? Explain briefly."
REFERENCE_ANSWER = "Le Grand Paris, la femme de la France"


async def test_the_reference_prompt_has_its_answer(api: Api) -> None:
    answer = await api.complete(chat(REFERENCE, 12))
    assert answer.text.startswith(REFERENCE_ANSWER)
    assert answer.choice.finish_reason == FinishReason.FINISH_REASON_LENGTH
    assert answer.choice.output_tokens == 12
    assert (answer.started.model, answer.started.digest) == (MODEL, "sha256:abc")
    assert answer.started.prompt_tokens > 20
    timings = answer.completed.timings
    parts = [timings.queue, timings.prefill, timings.decode]
    assert all(part.ToNanoseconds() > 0 for part in parts)
    assert timings.total.ToNanoseconds() >= sum(part.ToNanoseconds() for part in parts)


async def test_b5_eight_at_once_answer_as_one_at_a_time(api: Api) -> None:
    subjects = ["a cat", "rain", "the number 7", "Paris", "an old ship", "tea", "owls", "a lie"]
    requests = [
        prompt(
            f"Tell me about {subject}" + ", please" * (i % 3),
            6,
            sampling=SamplingOptions(temperature=0.8 if i % 2 else 0, seed=i),
        )
        for i, subject in enumerate(subjects)
    ]
    one_by_one = [await api.complete(request) for request in requests]
    together = await asyncio.gather(*map(api.complete, requests))
    assert [a.text for a in together] == [a.text for a in one_by_one]
    assert [a.token_ids for a in together] == [a.token_ids for a in one_by_one]
    assert len({a.text for a in together}) == 8


async def test_b4_a_stop_over_three_tokens_ends_the_text(api: Api) -> None:
    whole = await api.complete(chat(REFERENCE, 12))
    pieces = [await text_of(api, [token]) for token in whole.token_ids]
    stop = pieces[3][-1:] + pieces[4] + pieces[5][:1]
    assert whole.text.count(stop) == 1
    before = whole.text[: whole.text.index(stop)]

    answer = await api.complete(chat(REFERENCE, 12, stop=StopOptions(strings=["zzz", stop])))
    assert answer.text == before
    assert answer.choice.finish_reason == FinishReason.FINISH_REASON_STOP
    assert answer.choice.stop_string == stop
    assert answer.choice.output_tokens == 6

    options = StopOptions(strings=[stop], include_stop=True)
    assert (await api.complete(chat(REFERENCE, 12, stop=options))).text == before + stop

    # What only begins like a stop is no stop.
    almost = await api.complete(chat(REFERENCE, 12, stop=StopOptions(strings=[stop + "\0"])))
    assert (almost.text, almost.token_ids) == (whole.text, whole.token_ids)
    assert almost.choice.finish_reason == FinishReason.FINISH_REASON_LENGTH


async def test_a_stop_token_ends_the_text(api: Api) -> None:
    whole = await api.complete(chat(REFERENCE, 4))
    token = whole.token_ids[2]
    answer = await api.complete(chat(REFERENCE, 4, stop=StopOptions(token_ids=[token])))
    assert answer.choice.finish_reason == FinishReason.FINISH_REASON_STOP
    assert answer.choice.stop_token_id == token
    assert answer.token_ids == whole.token_ids[:3]
    assert answer.text == await text_of(api, whole.token_ids[:2])


async def test_the_end_of_text_ends_the_text_unless_ignored(api: Api) -> None:
    eos = await tokenize(api, "<|im_end|>")
    # A bias that no other token can match makes the model end its text at once.
    certain = SamplingOptions(temperature=0, logit_bias={eos[0]: 1000})
    answer = await api.complete(chat("Hi.", 5, sampling=certain))
    assert (answer.text, answer.token_ids) == ("", eos)
    assert answer.choice.finish_reason == FinishReason.FINISH_REASON_END_OF_TEXT
    assert answer.choice.stop_token_id == eos[0]
    ignored = await api.complete(chat("Hi.", 5, sampling=certain, stop=ENDLESS))
    assert (ignored.text, ignored.token_ids) == ("", eos * 5)


async def test_b3_a_character_of_several_tokens_is_sent_whole(api: Api) -> None:
    snowman = await tokenize(api, "☃")
    assert len(snowman) == 3
    # The bias leaves these tokens alone; the penalty on the last two makes them take turns.
    sampling = SamplingOptions(
        temperature=0,
        logit_bias=dict.fromkeys(snowman, 1000.0),
        repetition_penalty=10,
        penalty_window=2,
    )
    request = tokens(snowman[1:], 8, sampling=sampling, logprobs=LogprobsOptions(enabled=True))
    answer = await api.complete(request)
    assert answer.token_ids == (snowman * 3)[:8]
    assert answer.text == "☃☃\ufffd"  # The limit cuts the third.
    assert b"".join(each.piece for each in answer.logprobs) == "☃☃☃".encode()[:8]


async def test_seeds_are_honoured_and_reported(api: Api) -> None:
    async def answer(seed: int | None = None) -> Answer:
        options = SamplingOptions(temperature=1.2, seed=seed)
        return await api.complete(prompt("Say", 6, sampling=options))

    first, again, other = await answer(7), await answer(7), await answer(8)
    assert (first.started.seed, other.started.seed) == (7, 8)
    assert first.token_ids == again.token_ids != other.token_ids
    chosen = await answer()
    assert chosen.started.seed >= 0
    assert (await answer(chosen.started.seed)).token_ids == chosen.token_ids
    assert (await answer()).started.seed != chosen.started.seed
    largest = await answer(2**63 - 1)
    assert largest.started.seed == 2**63 - 1


async def test_logprobs_are_those_of_the_models_distribution(api: Api, smollm2_dir: Path) -> None:
    ids = await tokenize(api, "The capital of France is")
    request = tokens(ids, 4, logprobs=LogprobsOptions(enabled=True, top=5))
    answer = await api.complete(request)
    assert [each.token_id for each in answer.logprobs] == answer.token_ids
    for each in answer.logprobs:
        assert each.top[0].token_id == each.token_id  # Greedy takes the likeliest.
        values = [other.logprob for other in each.top]
        assert values == sorted(values, reverse=True)
        assert sum(map(math.exp, values)) <= 1.0001
        assert each.piece == (await detokenize(api, [each.token_id]))

    exact = exact_logprobs(smollm2_dir, ids + answer.token_ids[:-1])[len(ids) - 1 :]
    for each, row in zip(answer.logprobs, exact, strict=True):
        assert each.logprob == pytest.approx(row[each.token_id], abs=1e-3)
        for other in each.top:
            assert other.logprob == pytest.approx(row[other.token_id], abs=1e-3)


async def test_logprobs_are_sent_only_when_asked_for(api: Api) -> None:
    assert (await api.complete(prompt("One", 2))).logprobs == []
    alone = await api.complete(prompt("One", 2, logprobs=LogprobsOptions(enabled=True)))
    assert [len(each.top) for each in alone.logprobs] == [0, 0]


async def test_a_cancelled_stream_frees_its_row(api: Api) -> None:
    stream = api.stream(prompt("Once upon a time", 2000, stop=ENDLESS))
    await stream.until("delta")
    runner = await api.describe()
    assert (runner.load.running, runner.state) == (1, RunnerState.RUNNER_STATE_SERVING)
    stream.call.cancel()
    freed = await api.idle()
    assert freed.load.requests_total > runner.load.requests_total
    # Far fewer tokens than it had asked for.
    assert freed.load.output_tokens_total - runner.load.output_tokens_total < 200


async def test_c7_health_answers_while_a_long_prompt_is_prefilled(api: Api) -> None:
    await api.healthy()
    stream = api.stream(prompt("river " * 7000, 1))
    await stream.until("progress")
    loop = asyncio.get_running_loop()
    took = []
    for _ in range(30):
        begin = loop.time()
        assert await api.healthy()
        took.append(loop.time() - begin)
        await asyncio.sleep(0.03)
    still_at_it = await api.describe()
    stream.call.cancel()
    assert still_at_it.load.running == 1
    took.sort()
    # 100 ms, and some patience with a machine that others use too.
    assert took[len(took) // 2] < 0.1
    assert took[-1] < 1.0


async def test_the_runner_describes_itself(api: Api) -> None:
    runner = await api.describe()
    assert (runner.model, runner.digest, runner.id) == (MODEL, "sha256:abc", "runner")
    assert (runner.limits.context_length, runner.limits.vocab_size) == (8192, 49152)
    assert runner.limits.chat
    assert runner.pid > 0
    assert runner.memory.weights_bytes > 50_000_000
    assert runner.memory.resident_bytes > runner.memory.weights_bytes
    (device,) = runner.devices
    assert device.kind in ("cpu", "cuda", "metal")


async def tokenize(api: Api, text: str) -> list[int]:
    response = await api.tokenize.Tokenize(TokenizeRequest(model=MODEL, text=text))
    return list(response.token_ids)


async def detokenize(api: Api, ids: list[int]) -> bytes:
    response = await api.tokenize.Detokenize(DetokenizeRequest(model=MODEL, token_ids=ids))
    return response.data


async def text_of(api: Api, ids: list[int]) -> str:
    return (await detokenize(api, ids)).decode(errors="replace")


def exact_logprobs(model_dir: Path, ids: list[int]) -> npt.NDArray[np.float64]:
    """Log-softmax of the logits at every place, by numpy."""
    model = load(model_dir, "float32", lambda fraction: None).model
    logits = np.array(model(mx.array([ids])), np.float64)[0]
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logprobs: npt.NDArray[np.float64] = shifted - np.log(
        np.exp(shifted).sum(axis=-1, keepdims=True)
    )
    return logprobs
