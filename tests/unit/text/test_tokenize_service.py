"""TokenizeService over a real gRPC server with the interceptors of the runner."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from headrace.errors import (
    InvalidRequest,
    UnsupportedCapability,
    from_rpc_error,
)
from headrace.rpc.options import channel_options, server_options
from headrace.rpc.service import server_interceptors
from headrace.v1.common_pb2 import TokenIds
from headrace.v1.completion_pb2 import ChatInput, ChatMessage, ChatRole, CompletionInput
from headrace.v1.tokenize_pb2 import (
    CountTokensRequest,
    DetokenizeRequest,
    RenderChatRequest,
    TokenizeRequest,
)
from headrace.v1.tokenize_pb2_grpc import (
    TokenizeServiceStub,
    add_TokenizeServiceServicer_to_server,
)
from headrace_runner.config import parse
from headrace_runner.engine.text.engine import TextEngine
from headrace_runner.engine.text.worker import Limits
from headrace_runner.models.chat import ChatTemplate
from headrace_runner.models.load import LoadedModel
from headrace_runner.models.markup import ModelMarkup
from headrace_runner.models.tokenizer import Tokenizer
from headrace_runner.services import tokenize
from headrace_runner.services.tokenize import TokenizeServicer
from headrace_runner.services.workers import LARGE_BYTES, in_worker
from headrace_runner.text_state import TextRunner

if TYPE_CHECKING:
    from headrace.v1.tokenize_pb2_grpc import TokenizeServiceAsyncStub

CONTEXT = 8


def _never() -> LoadedModel:
    raise AssertionError("text needs no weights")


async def _serve(
    tokenizer: Tokenizer, template: ChatTemplate, socket: Path
) -> AsyncIterator["TokenizeServiceAsyncStub"]:
    address = f"unix:{socket}"
    server = grpc.aio.server(options=server_options(), interceptors=server_interceptors())
    runner = TextRunner(
        config=parse(["--model", str(socket.parent), "--name", "m"]),
        tokenizer=tokenizer,
        template=template,
        markup=ModelMarkup(),
        engine=TextEngine(_never, tokenizer, Limits(1)),
        context_length=CONTEXT,
        loaded=asyncio.get_running_loop().create_future(),
    )
    add_TokenizeServiceServicer_to_server(TokenizeServicer(runner), server)
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address, options=channel_options(address)) as channel:
        yield TokenizeServiceStub(channel)
    await server.stop(None)


@pytest.fixture
async def stub(
    smollm2_dir: Path, smollm2: Tokenizer, tmp_path: Path
) -> AsyncIterator["TokenizeServiceAsyncStub"]:
    template = ChatTemplate.load(smollm2_dir, smollm2.special_tokens)
    async for stub in _serve(smollm2, template, tmp_path / "smollm2"):
        yield stub


@pytest.fixture
async def without_template(
    sentencepiece: Tokenizer, tmp_path: Path
) -> AsyncIterator["TokenizeServiceAsyncStub"]:
    async for stub in _serve(sentencepiece, ChatTemplate({}, {}), tmp_path / "other"):
        yield stub


def _user(content: str) -> ChatInput:
    return ChatInput(messages=[ChatMessage(role=ChatRole.CHAT_ROLE_USER, content=content)])


async def test_tokenize_and_back(stub: "TokenizeServiceAsyncStub") -> None:
    text = "héllo 日本 <|im_end|> 12"
    plain = await stub.Tokenize(TokenizeRequest(model="m", text=text))
    assert not plain.pieces
    full = await stub.Tokenize(TokenizeRequest(model="m", text=text, pieces=True))
    assert [p.token_id for p in full.pieces] == list(full.token_ids) == list(plain.token_ids)
    assert all(p.piece == text.encode()[p.start : p.end] for p in full.pieces)
    back = await stub.Detokenize(DetokenizeRequest(model="m", token_ids=plain.token_ids))
    assert (back.data, back.text) == (text.encode(), text)
    skipped = await stub.Detokenize(
        DetokenizeRequest(model="m", token_ids=plain.token_ids, skip_special=True)
    )
    assert skipped.text == "héllo 日本  12"


async def test_half_a_character_comes_back_as_bytes(stub: "TokenizeServiceAsyncStub") -> None:
    ids = (await stub.Tokenize(TokenizeRequest(model="m", text="日"))).token_ids
    half = await stub.Detokenize(DetokenizeRequest(model="m", token_ids=ids[:1]))
    assert "日".encode().startswith(half.data)
    assert half.text == "\ufffd"


async def test_added_special_tokens(without_template: "TokenizeServiceAsyncStub") -> None:
    request = TokenizeRequest(model="m", text="a", add_special=True, pieces=True)
    reply = await without_template.Tokenize(request)
    assert (reply.token_ids[0], reply.pieces[0].start, reply.pieces[0].end) == (1, 0, 0)


async def test_render_chat(stub: "TokenizeServiceAsyncStub") -> None:
    reply = await stub.RenderChat(RenderChatRequest(model="m", chat=_user("Hi")))
    assert reply.prompt.endswith("user\nHi<|im_end|>\n<|im_start|>assistant\n")
    back = await stub.Detokenize(DetokenizeRequest(model="m", token_ids=reply.token_ids))
    assert back.text == reply.prompt
    count = await stub.CountTokens(
        CountTokensRequest(model="m", input=CompletionInput(chat=_user("Hi")))
    )
    assert count.token_count == len(reply.token_ids)
    assert not count.fits


@pytest.mark.parametrize(("length", "fits"), [(CONTEXT, True), (CONTEXT + 1, False)])
async def test_what_fits_leaves_room_for_a_token(
    stub: "TokenizeServiceAsyncStub", length: int, fits: bool
) -> None:
    given = CompletionInput(token_ids=TokenIds(ids=[5] * length))
    reply = await stub.CountTokens(CountTokensRequest(model="m", input=given))
    assert (reply.token_count, reply.context_length, reply.fits) == (length, CONTEXT, fits)


async def _error(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return from_rpc_error(raised.value)


async def test_errors_name_their_field(
    stub: "TokenizeServiceAsyncStub", without_template: "TokenizeServiceAsyncStub"
) -> None:
    error = await _error(stub.Detokenize(DetokenizeRequest(model="m", token_ids=[1, 99999])))
    assert isinstance(error, InvalidRequest)
    assert [v.field for v in error.violations] == ["token_ids[1]"]

    roleless = ChatInput(messages=[ChatMessage(content="x")])
    for call in (
        stub.RenderChat(RenderChatRequest(model="m", chat=roleless)),
        stub.RenderChat(RenderChatRequest(model="m", chat=ChatInput())),
        stub.CountTokens(CountTokensRequest(model="m")),
        stub.CountTokens(CountTokensRequest(model="m", input=CompletionInput(prompt=""))),
    ):
        error = await _error(call)
        assert isinstance(error, InvalidRequest)
        assert error.violations

    error = await _error(
        without_template.RenderChat(RenderChatRequest(model="m", chat=_user("Hi")))
    )
    assert isinstance(error, UnsupportedCapability)


async def test_pieces_of_a_large_text_are_refused(stub: "TokenizeServiceAsyncStub") -> None:
    text = "é" * (512 * 1024 + 1)
    error = await _error(stub.Tokenize(TokenizeRequest(model="m", text=text, pieces=True)))
    assert isinstance(error, InvalidRequest)
    assert [v.field for v in error.violations] == ["text"]
    assert "leave `pieces` out or split the text" in error.message
    assert (await stub.Tokenize(TokenizeRequest(model="m", text=text))).token_ids


@pytest.mark.parametrize("kind", ["text", "token_ids", "chat.messages"])
async def test_an_answer_that_no_client_would_get_is_refused(
    stub: "TokenizeServiceAsyncStub",
    smollm2: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(tokenize, "MAX_MESSAGE_BYTES", 100)

    def call(length: int) -> Any:
        match kind:
            case "text":
                return stub.Tokenize(TokenizeRequest(model="m", text="x " * length))
            case "token_ids":
                ids = smollm2.encode(" length", add_special=False) * length
                return stub.Detokenize(DetokenizeRequest(model="m", token_ids=ids))
            case _:
                chat = _user("x " * length)
                return stub.RenderChat(RenderChatRequest(model="m", chat=chat))

    error = await _error(call(200))
    assert isinstance(error, InvalidRequest)
    assert [v.field for v in error.violations] == [kind]
    monkeypatch.undo()
    assert (await call(200)).ByteSize() > 100


async def test_a_long_prompt_does_not_hold_up_others(stub: "TokenizeServiceAsyncStub") -> None:
    long = "A fairly long prompt. " * 60_000
    started = time.perf_counter()
    counting = asyncio.ensure_future(
        stub.CountTokens(CountTokensRequest(model="m", input=CompletionInput(prompt=long)))
    )
    answered, slowest = 0, 0.0
    while not counting.done():
        before = time.perf_counter()
        await stub.Detokenize(DetokenizeRequest(model="m", token_ids=[5]))
        slowest = max(slowest, time.perf_counter() - before)
        answered += 1
    took = time.perf_counter() - started
    assert (await counting).token_count > 60_000
    assert answered > 3
    assert slowest < took / 2


async def test_large_requests_go_one_at_a_time_and_leave_room_for_small_ones() -> None:
    large, small = TokenizeRequest(text="x" * LARGE_BYTES), TokenizeRequest(text="x")
    running, most = 0, 0
    go = threading.Event()

    def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert go.wait(10)
        running -= 1

    many = [asyncio.ensure_future(in_worker(large, work)) for _ in range(50)]
    assert await asyncio.wait_for(in_worker(small, lambda: "small"), timeout=5) == "small"
    for waiting in many[2:]:
        waiting.cancel()
    go.set()
    done = await asyncio.gather(*many, return_exceptions=True)
    assert done[:2] == [None, None]
    assert all(isinstance(result, asyncio.CancelledError) for result in done[2:])
    assert most == 1
