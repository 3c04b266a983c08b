"""What a model says, through client, controller and runner."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import grpc.aio
import pytest

from headrace import AsyncClient
from headrace.client import Client
from headrace.errors import ContextLengthExceeded, InvalidRequest
from headrace.types import Completed, Delta, FinishReason, Progress, Started
from headrace.v1.completion_pb2 import SamplingOptions, StreamCompletionRequest
from headrace.v1.completion_pb2_grpc import CompletionServiceStub
from tests.e2e.conftest import TINY
from tests.e2e.harness import ANSWER, MODEL, QUESTION, Controller, StartController, headrace

CHAT = [{"role": "user", "content": QUESTION}]
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a village by the sea,",
    "1, 2, 3, 4, 5,",
    "Q: Why is the sky blue?\nA:",
    "To make bread you need flour,",
    "<html><head><title>",
    "Dear Sir or Madam,",
]


def test_the_reference_answer_by_the_sdk(client: Client) -> None:
    with client.stream_completion(MODEL, messages=CHAT, temperature=0, max_tokens=16) as stream:
        events = list(stream)
        whole = stream.collect()
    assert ANSWER.startswith(whole.text)
    assert len(whole.text) > len(ANSWER) // 2

    # Invariants of every stream.
    kinds = [type(event) for event in events if not isinstance(event, Progress)]
    assert kinds[0] is Started
    assert kinds[-1] is Completed
    assert set(kinds[1:-1]) == {Delta}
    deltas = [event for event in events if isinstance(event, Delta)]
    assert "".join(delta.text for delta in deltas) == whole.text
    counts = [delta.output_tokens for delta in deltas]
    assert counts == sorted(counts)
    assert counts[-1] == whole.usage.output_tokens == len(whole.token_ids) == 16
    assert client.detokenize(MODEL, whole.token_ids).text == whole.text
    assert whole.finish_reason is FinishReason.LENGTH
    counted = client.count_tokens(MODEL, messages=CHAT)
    assert (counted.token_count, counted.fits) == (whole.usage.prompt_tokens, True)
    assert 0 < whole.timings.prefill + whole.timings.decode <= whole.timings.total


def test_the_reference_answer_by_the_command_line(controller: Controller) -> None:
    ended = headrace(controller, "run", MODEL, QUESTION, "--temperature", "0", "--max-tokens", "16")
    answer = ended.stdout.removesuffix("\n")
    assert ANSWER.startswith(answer)
    assert len(answer) > len(ANSWER) // 2
    (summary,) = ended.stderr.splitlines()
    assert "16 tokens · " in summary
    assert " tokens/s · first token " in summary
    assert len(summary.rpartition("trace ")[2]) == 32


async def test_eight_prompts_at_once_are_answered_as_one_at_a_time(controller: Controller) -> None:
    async with AsyncClient(controller.target, timeout=100) as client:

        async def answer(prompt: str) -> tuple[int, ...]:
            whole = await client.complete(MODEL, prompt, temperature=0, max_tokens=8)
            return whole.token_ids

        alone = [await answer(prompt) for prompt in PROMPTS]
        together = await asyncio.gather(*map(answer, PROMPTS))
    assert together == alone
    assert len(set(alone)) == len(PROMPTS)


async def test_b5_a_seed_draws_the_same_alone_and_in_company(controller: Controller) -> None:
    async with AsyncClient(controller.target, timeout=100) as client:

        async def answer(seed: int) -> tuple[int, ...]:
            whole = await client.complete(MODEL, "My favourite", seed=seed, max_tokens=6)
            assert whole.started.seed == seed
            return whole.token_ids

        alone = [await answer(seed) for seed in range(3)]
        together = await asyncio.gather(*map(answer, range(3)))
    assert together == alone
    assert len(set(alone)) == 3


async def test_several_choices_are_each_a_request_of_its_own(
    controller: Controller, channel: grpc.aio.Channel
) -> None:
    sampling = SamplingOptions(seed=5)
    request = StreamCompletionRequest(
        model=MODEL, prompt="My favourite", sampling=sampling, max_tokens=6, n=3
    )
    ids: dict[int, list[int]] = {0: [], 1: [], 2: []}
    completed = None
    async for response in CompletionServiceStub(channel).StreamCompletion(request, timeout=100):
        assert completed is None
        if response.HasField("delta"):
            ids[response.delta.choice] += response.delta.token_ids
            assert response.delta.output_tokens == len(ids[response.delta.choice])
        if response.HasField("completed"):
            completed = response.completed
    assert completed is not None
    assert [choice.index for choice in completed.choices] == [0, 1, 2]
    assert completed.usage.output_tokens == sum(map(len, ids.values()))
    assert len(set(map(tuple, ids.values()))) == 3
    async with AsyncClient(controller.target, timeout=100) as client:
        alone = await client.complete(MODEL, "My favourite", seed=5, max_tokens=6)
    assert ids[0] == list(alone.token_ids)
    assert completed.usage.prompt_tokens == alone.usage.prompt_tokens


def test_threads_share_one_blocking_client(client: Client) -> None:
    def answer(prompt: str) -> str:
        return client.complete(MODEL, prompt, temperature=0, max_tokens=4, timeout=100).text

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(answer, PROMPTS[:4]))
    assert together == [answer(prompt) for prompt in PROMPTS[:4]]


def test_b3_a_character_is_never_cut(client: Client) -> None:
    """The tokenizer spells こ as E3 81 and 93, ん as E3 82 and 93."""
    with client.stream_completion(MODEL, "こん" * 12, temperature=0, max_tokens=8) as stream:
        deltas = [event for event in stream if isinstance(event, Delta)]
    tokens = client.tokenize(MODEL, "こん", pieces=True)
    assert [piece.piece.hex() for piece in tokens.pieces] == ["e381", "93", "e382", "93"]

    # However tokens were joined into messages: each has the text that is whole by then.
    ids: list[int] = []
    text = ""
    for delta in deltas:
        ids += delta.token_ids
        text += delta.text
        assert text == "こんこん"[: len(ids) // 2]
    assert ids == [*tokens.token_ids, *tokens.token_ids]


def test_b3_an_output_that_ends_inside_a_character(client: Client) -> None:
    whole = client.complete(MODEL, "こん" * 12, temperature=0, max_tokens=3)
    assert len(whole.token_ids) == 3
    assert whole.text.startswith("こ")
    assert whole.text == client.detokenize(MODEL, whole.token_ids).text


def test_b4_a_stop_string_over_token_borders_is_not_emitted(client: Client) -> None:
    stop = "is, la fem"
    assert len(client.tokenize(MODEL, stop).token_ids) > 3
    whole = client.complete(MODEL, messages=CHAT, temperature=0, max_tokens=18, stop=stop)
    assert whole.text == ANSWER[: ANSWER.index(stop)]
    assert (whole.finish_reason, whole.completed.matched) == (FinishReason.STOP, stop)
    assert whole.usage.output_tokens < 18


def test_b4_text_that_only_began_like_a_stop_string_is_emitted(client: Client) -> None:
    stop = ["is, la fenêtre", "Paris, la femme de la Belgique"]
    whole = client.complete(MODEL, messages=CHAT, temperature=0, max_tokens=12, stop=stop)
    plain = client.complete(MODEL, messages=CHAT, temperature=0, max_tokens=12)
    assert whole.text == plain.text
    assert ANSWER.startswith(plain.text)
    assert whole.finish_reason is FinishReason.LENGTH


def test_b8_one_token_and_none(client: Client) -> None:
    one = client.complete(MODEL, "The capital of France is", temperature=0, max_tokens=1)
    assert (one.text, one.usage.output_tokens) == (" Paris", 1)
    assert one.finish_reason is FinishReason.LENGTH
    # SmolLM2 begins a text without a token of its own, so there is nothing to start from.
    with pytest.raises(InvalidRequest) as empty:
        client.complete(MODEL, "", max_tokens=1)
    assert [violation.field for violation in empty.value.violations] == ["prompt"]


def test_b8_the_end_of_the_context(start: StartController) -> None:
    limit = 24
    controller = start("--context", str(limit))
    with Client(controller.target, timeout=60) as client:
        full = client.complete(TINY, token_ids=[100] * limit, temperature=0, ignore_eos=True)
        assert (full.usage.prompt_tokens, full.usage.output_tokens) == (limit, 1)
        assert full.finish_reason is FinishReason.LENGTH

        with pytest.raises(ContextLengthExceeded) as over:
            client.complete(TINY, token_ids=[100] * (limit + 1))
        assert over.value.metadata == {"limit": str(limit), "actual": str(limit + 1)}

        # What would pass the context's end is cut there.
        cut = client.complete(TINY, "fox", temperature=0, max_tokens=1000, ignore_eos=True)
        assert cut.usage.prompt_tokens + cut.usage.output_tokens == limit + 1
        assert cut.finish_reason is FinishReason.LENGTH


def test_b7_a_prompt_that_is_asked_again(client: Client) -> None:
    first = client.complete(MODEL, "1, 2, 3,", temperature=0, max_tokens=4)
    again = client.complete(MODEL, "1, 2, 3,", temperature=0, max_tokens=4)
    grown = client.tokenize(MODEL, "1, 2, 3,").token_ids + first.token_ids
    more = client.complete(MODEL, token_ids=grown, temperature=0, max_tokens=2)
    assert again.token_ids == first.token_ids
    assert more.usage.prompt_tokens == len(grown)


def test_usage_and_text_agree_with_json_output(controller: Controller) -> None:
    arguments = ("--raw", "--temperature", "0", "--max-tokens", "3", "--json")
    shown = json.loads(headrace(controller, "run", MODEL, "1, 2, 3,", *arguments).stdout)
    assert shown["text"].startswith(" 4")
    assert shown["usage"]["output_tokens"] == 3
    assert shown["finish_reason"] == "length"
