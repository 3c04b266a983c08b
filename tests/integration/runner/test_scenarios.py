"""Scenarios of streams on the real model: clients that go, prompts that come again, faults."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from headrace.errors import ContextLengthExceeded, InternalError
from headrace.v1.completion_pb2 import (
    ChatInput,
    ChatMessage,
    ChatRole,
    FinishReason,
    SamplingOptions,
    StreamCompletionRequest,
)
from headrace.v1.tokenize_pb2 import RenderChatRequest, TokenizeRequest
from tests.integration.runner.api import ENDLESS, MODEL, Api, connected, prompt, tokens
from tests.integration.runner.child import Child
from tests.integration.runner.conftest import FRESH
from tests.integration.runner.faulty import FAULTY

STORY = " ".join(
    f"On day {day} the ship passed {place} and the crew counted {day * 7 % 13} birds."
    for day, place in enumerate(["an island", "a reef", "two boats", "the cape", "ice"] * 9)
)
"""Some 900 tokens."""

UNREAD = """
import grpc, signal, sys
channel = grpc.insecure_channel(sys.argv[1])
call = channel.unary_stream("/headrace.v1.CompletionService/StreamCompletion")
stream = call(bytes.fromhex(sys.argv[2]))
signal.pause()
"""
"""A client that asks and never reads."""


@asynccontextmanager
async def killed(address: str, request: StreamCompletionRequest) -> AsyncIterator[None]:
    """A client's process, which is killed in the end."""
    arguments = (address, request.SerializeToString().hex())
    client = await asyncio.create_subprocess_exec(sys.executable, "-c", UNREAD, *arguments)
    try:
        yield
    finally:
        client.kill()
        await client.wait()


@asynccontextmanager
async def closed(address: str, request: StreamCompletionRequest) -> AsyncIterator[None]:
    """A client's channel, which is closed in the end."""
    async with connected(address) as api:
        unread = api.stream(request)
        yield
        assert not unread.call.done()


@pytest.mark.parametrize("client", [closed, killed])
async def test_b1_a_client_that_goes_without_reading_frees_its_row(
    api: Api,
    smollm2_runner: Child,
    client: Callable[[str, StreamCompletionRequest], AbstractAsyncContextManager[None]],
) -> None:
    before = await api.describe()
    expected = await api.complete(prompt("One, two, three,", 4))
    async with client(smollm2_runner.address, prompt("Once upon a time", 4000, stop=ENDLESS)):
        total = before.load.output_tokens_total + 4
        await api.watch_until(
            lambda r: r.load.running == 1 and r.load.output_tokens_total > total + 3
        )
    free = await api.idle()
    assert free.load.requests_total == before.load.requests_total + 2
    assert free.load.output_tokens_total < before.load.output_tokens_total + 1000
    assert free.memory.kv_reserved_bytes == 0
    assert free.memory.kv_bytes == free.memory.prefix_cache_bytes
    assert (await api.complete(prompt("One, two, three,", 4))).token_ids == expected.token_ids


async def test_b2_a_prefill_that_was_cancelled_is_continued(api: Api, fresh: Api) -> None:
    request = prompt(STORY, 8)
    stream = api.stream(request)
    await stream.until("progress")
    stream.call.cancel()
    await api.idle()
    again = await api.complete(request)
    assert 0 < stream.prefilled <= again.started.cached_tokens < again.started.prompt_tokens
    cold = await fresh.complete(request)
    assert cold.started.cached_tokens == 0
    assert (again.text, again.token_ids) == (cold.text, cold.token_ids)


async def test_b6_a_row_that_fails_is_the_only_one(api: Api, fresh: Api) -> None:
    requests = [
        prompt(f"A word about {subject}:", 8, sampling=SamplingOptions(temperature=i % 2, seed=i))
        for i, subject in enumerate(["snow", "the sea", "bread", "glass", "iron", "time", "moss"])
    ]
    expected = [await api.complete(request) for request in requests]
    faulty = fresh.stream(prompt("A word about salt:", 8, request_id=FAULTY))
    running = asyncio.gather(*map(fresh.complete, requests))
    with pytest.raises(InternalError) as caught:
        await faulty.rest()
    assert "a bug" not in caught.value.message
    assert len(faulty.answer.token_ids) == 2
    for answer, alone in zip(await running, expected, strict=True):
        assert (answer.text, answer.token_ids) == (alone.text, alone.token_ids)


async def test_b7_a_conversation_that_is_repeated_exactly(api: Api, fresh: Api) -> None:
    said = [ChatMessage(role=ChatRole.CHAT_ROLE_USER, content="Name three colours, please.")]
    render = RenderChatRequest(model=MODEL, chat=ChatInput(messages=said))
    ids = list((await api.tokenize.RenderChat(render)).token_ids)
    first = await api.complete(tokens(ids, 12, stop=ENDLESS))
    whole = ids + first.token_ids
    cold = await fresh.complete(tokens(whole, 8, stop=ENDLESS))
    for _ in range(2):
        again = await api.complete(tokens(whole, 8, stop=ENDLESS))
        assert again.started.cached_tokens == len(whole) - 1
        assert (again.text, again.token_ids) == (cold.text, cold.token_ids)
    # What is known beyond a prompt's end is not used for it.
    start = await api.complete(tokens(whole[:-5], 13, stop=ENDLESS))
    assert start.started.cached_tokens == len(whole) - 6
    assert start.token_ids == first.token_ids[-5:] + cold.token_ids


async def test_b8_prompts_at_the_contexts_end(api: Api, fresh: Api) -> None:
    response = await api.tokenize.Tokenize(TokenizeRequest(model=MODEL, text=STORY + STORY))
    ids = list(response.token_ids)
    full = StreamCompletionRequest(model=MODEL, sampling=SamplingOptions(temperature=0))
    full.token_ids.ids.extend(ids[:FRESH])
    answers = [await fresh.complete(full), await fresh.complete(tokens(ids[:FRESH], 1))]
    expected = await api.complete(tokens(ids[:FRESH], 1))
    for answer in answers:
        assert answer.token_ids == expected.token_ids
        assert answer.choice.finish_reason == FinishReason.FINISH_REASON_LENGTH
    with pytest.raises(ContextLengthExceeded) as over:
        await fresh.complete(tokens(ids[: FRESH + 1], 1))
    assert over.value.metadata == {"limit": str(FRESH), "actual": str(FRESH + 1)}
    with pytest.raises(ContextLengthExceeded):
        await fresh.complete(tokens(ids[:FRESH], 5, resume_token_ids=ids[:2]))
