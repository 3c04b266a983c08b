"""Several choices of one request: each is what it would be alone, from one prefill."""

from __future__ import annotations

import asyncio
from typing import Any

from headrace.v1.completion_pb2 import (
    FinishReason,
    SamplingOptions,
    StopOptions,
    StreamCompletionRequest,
)
from headrace_runner.engine.text.sampling import choice_seed
from tests.integration.runner.api import ENDLESS, GREEDY, Api, prompt

SEED = 7
N = 4


def ask(seed: int = SEED, **fields: Any) -> StreamCompletionRequest:
    sampling = SamplingOptions(temperature=0.9, seed=seed)
    fields = {"stop": ENDLESS} | fields
    return prompt("My favourite thing about winter is", 10, sampling=sampling, **fields)


async def test_each_choice_is_a_request_of_its_own_seed(api: Api, fresh: Api) -> None:
    before = await api.idle()
    answer = await api.complete(ask(n=N))
    after = await api.idle()
    assert answer.started.seed == SEED
    seeds = [choice_seed(SEED, choice) for choice in range(N)]
    assert seeds[0] == SEED
    alone = await asyncio.gather(*(fresh.complete(ask(seed)) for seed in seeds))
    for choice in range(N):
        output = answer.outputs[choice]
        assert (output.text, output.token_ids) == (alone[choice].text, alone[choice].token_ids)
    assert len({output.text for output in answer.outputs.values()}) == N
    # The prompt is computed and counted once.
    usage, load = answer.completed.usage, after.load
    assert usage.prompt_tokens == alone[0].completed.usage.prompt_tokens
    assert usage.output_tokens == 10 * N
    assert load.prompt_tokens_total - before.load.prompt_tokens_total == usage.prompt_tokens
    assert load.output_tokens_total - before.load.output_tokens_total == 10 * N
    assert load.requests_total - before.load.requests_total == 1


async def test_greedy_choices_are_the_same(api: Api) -> None:
    answer = await api.complete(prompt("One, two,", 6, sampling=GREEDY, n=2))
    assert answer.outputs[0].token_ids == answer.outputs[1].token_ids
    assert answer.outputs[0].text == answer.outputs[1].text != ""


async def test_a_choice_that_ends_leaves_the_others(api: Api) -> None:
    free = await api.complete(ask(n=N))
    texts = [free.outputs[choice].text for choice in range(N)]
    stop = next(
        texts[1][at : at + 4]
        for at in range(5, len(texts[1]))
        if not any(texts[1][at : at + 4] in other for other in (texts[0], *texts[2:]))
    )
    answer = await api.complete(ask(n=N, stop=StopOptions(strings=[stop], ignore_eos=True)))
    for choice, result in enumerate(answer.completed.choices):
        if choice == 1:
            assert result.finish_reason == FinishReason.FINISH_REASON_STOP
            assert result.stop_string == stop
            assert answer.outputs[1].text == texts[1][: texts[1].index(stop)]
        else:
            assert result.finish_reason == FinishReason.FINISH_REASON_LENGTH
            assert answer.outputs[choice].token_ids == free.outputs[choice].token_ids
            assert answer.outputs[choice].text == texts[choice]


async def test_all_choices_of_a_cancelled_stream_are_freed(api: Api) -> None:
    request = ask(n=N)
    request.max_tokens = 2000
    stream = api.stream(request)
    await stream.until("delta")
    assert (await api.describe()).load.running == N
    stream.call.cancel()
    freed = await api.idle()
    assert freed.memory.kv_reserved_bytes == 0
