"""Serves TokenizeService: text to tokens and back, and a chat as its prompt.

Thin: the work is the tokenizer's and runs in worker threads, so that a prompt of many megabytes
never holds up the streams and health checks of the event loop.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from headrace.rpc.options import MAX_MESSAGE_BYTES
from headrace.v1.tokenize_pb2 import (
    CountTokensRequest,
    CountTokensResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    RenderChatRequest,
    RenderChatResponse,
    TokenizeRequest,
    TokenizeResponse,
    TokenPiece,
)
from headrace.v1.tokenize_pb2_grpc import TokenizeServiceServicer
from headrace_runner.models.chat import invalid_field
from headrace_runner.services.prompt import chat_ids, check_ids, prompt_ids, render_chat
from headrace_runner.services.workers import in_worker
from headrace_runner.text_state import TextRunner

Q = TypeVar("Q", TokenizeRequest, DetokenizeRequest, RenderChatRequest, CountTokensRequest)
A = TypeVar("A", bound=Message)

_MAX_TEXT_WITH_PIECES = 1024 * 1024
"""Bytes of UTF-8: a token's piece takes some twenty times the room of its id."""


class TokenizeServicer(TokenizeServiceServicer):
    """The tokenizer of a runner's model. It serves before the model's weights are loaded.

    Every method raises ModelMismatch for a request that was meant for another model.
    """

    def __init__(self, runner: TextRunner) -> None:
        self._runner = runner
        self._tokenizer = runner.tokenizer
        self._template = runner.template

    async def Tokenize(
        self,
        request: TokenizeRequest,
        context: grpc.aio.ServicerContext[TokenizeRequest, TokenizeResponse],
    ) -> TokenizeResponse:
        """Give the tokens of a text; raises InvalidRequest for one that is too long."""
        return await self._answer(self._tokenize, request, context)

    async def Detokenize(
        self,
        request: DetokenizeRequest,
        context: grpc.aio.ServicerContext[DetokenizeRequest, DetokenizeResponse],
    ) -> DetokenizeResponse:
        """Give the text of tokens; raises InvalidRequest for an id outside the vocabulary."""
        return await self._answer(self._detokenize, request, context)

    async def RenderChat(
        self,
        request: RenderChatRequest,
        context: grpc.aio.ServicerContext[RenderChatRequest, RenderChatResponse],
    ) -> RenderChatResponse:
        """Give a conversation as a prompt; raises what `render_chat` raises."""
        return await self._answer(self._render_chat, request, context)

    async def CountTokens(
        self,
        request: CountTokensRequest,
        context: grpc.aio.ServicerContext[CountTokensRequest, CountTokensResponse],
    ) -> CountTokensResponse:
        """Say how long a prompt is; raises what `prompt_ids` raises."""
        return await self._answer(self._count_tokens, request, context)

    async def _answer(
        self, work: Callable[[Q], A], request: Q, context: grpc.aio.ServicerContext[Q, A]
    ) -> A:
        metadata: dict[str, Any] = dict(context.invocation_metadata() or ())
        self._runner.check_target(request.model, metadata)
        return await in_worker(request, work, request)

    def _tokenize(self, request: TokenizeRequest) -> TokenizeResponse:
        if not request.pieces:
            ids = self._tokenizer.encode(request.text, add_special=request.add_special)
            return _sendable(TokenizeResponse(token_ids=ids), "text")
        if len(request.text.encode()) > _MAX_TEXT_WITH_PIECES:
            raise invalid_field(
                "text",
                f"must have at most {_MAX_TEXT_WITH_PIECES} bytes with pieces; "
                "leave `pieces` out or split the text",
            )
        pieces = self._tokenizer.pieces(request.text, add_special=request.add_special)
        response = TokenizeResponse(
            token_ids=[p.token_id for p in pieces],
            pieces=[
                TokenPiece(token_id=p.token_id, piece=p.data, start=p.start, end=p.end)
                for p in pieces
            ],
        )
        return _sendable(response, "text")

    def _detokenize(self, request: DetokenizeRequest) -> DetokenizeResponse:
        ids = list(request.token_ids)
        check_ids(ids, self._tokenizer, "token_ids")
        data = self._tokenizer.decode(ids, skip_special=request.skip_special)
        response = DetokenizeResponse(data=data, text=data.decode(errors="replace"))
        return _sendable(response, "token_ids")

    def _render_chat(self, request: RenderChatRequest) -> RenderChatResponse:
        prompt = render_chat(request.chat, self._template, "chat")
        response = RenderChatResponse(prompt=prompt, token_ids=chat_ids(prompt, self._tokenizer))
        return _sendable(response, "chat.messages")

    def _count_tokens(self, request: CountTokensRequest) -> CountTokensResponse:
        ids = prompt_ids(request.input, self._tokenizer, self._template, parent="input.")
        return CountTokensResponse(
            token_count=len(ids),
            context_length=self._runner.context_length,
            # As for a completion: the one token drawn after it need not be fed back.
            fits=len(ids) <= self._runner.context_length,
        )


def _sendable(response: A, field: str) -> A:
    """Refuse, naming `field`, an answer that no client would receive."""
    size = response.ByteSize()
    if size > MAX_MESSAGE_BYTES:
        raise invalid_field(
            field,
            f"is too long: its answer of {size} bytes is over the {MAX_MESSAGE_BYTES} that a "
            "message may have; split it",
        )
    return response
