"""Serves TokenizeService: text to tokens and back, and a chat as its prompt.

Thin: the work is the tokenizer's and runs in worker threads, so that a prompt of many megabytes
never holds up the streams and health checks of the event loop.
"""

import grpc

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
from headrace_runner.models.chat import ChatTemplate
from headrace_runner.models.tokenizer import Tokenizer
from headrace_runner.services.prompt import chat_ids, check_ids, prompt_ids, render_chat
from headrace_runner.services.workers import in_worker


class TokenizeServicer(TokenizeServiceServicer):
    """The tokenizer of one model; `context_length` is in tokens."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, *, context_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._context_length = context_length

    async def Tokenize(
        self,
        request: TokenizeRequest,
        context: grpc.aio.ServicerContext[TokenizeRequest, TokenizeResponse],
    ) -> TokenizeResponse:
        """Give the tokens of a text."""
        return await in_worker(request, self._tokenize, request)

    async def Detokenize(
        self,
        request: DetokenizeRequest,
        context: grpc.aio.ServicerContext[DetokenizeRequest, DetokenizeResponse],
    ) -> DetokenizeResponse:
        """Give the text of tokens; raises InvalidRequest for an id outside the vocabulary."""
        return await in_worker(request, self._detokenize, request)

    async def RenderChat(
        self,
        request: RenderChatRequest,
        context: grpc.aio.ServicerContext[RenderChatRequest, RenderChatResponse],
    ) -> RenderChatResponse:
        """Give a conversation as a prompt; raises what `render_chat` raises."""
        return await in_worker(request, self._render_chat, request)

    async def CountTokens(
        self,
        request: CountTokensRequest,
        context: grpc.aio.ServicerContext[CountTokensRequest, CountTokensResponse],
    ) -> CountTokensResponse:
        """Say how long a prompt is; raises what `prompt_ids` raises."""
        return await in_worker(request, self._count_tokens, request)

    def _tokenize(self, request: TokenizeRequest) -> TokenizeResponse:
        if not request.pieces:
            ids = self._tokenizer.encode(request.text, add_special=request.add_special)
            return TokenizeResponse(token_ids=ids)
        pieces = self._tokenizer.pieces(request.text, add_special=request.add_special)
        return TokenizeResponse(
            token_ids=[p.token_id for p in pieces],
            pieces=[
                TokenPiece(token_id=p.token_id, piece=p.data, start=p.start, end=p.end)
                for p in pieces
            ],
        )

    def _detokenize(self, request: DetokenizeRequest) -> DetokenizeResponse:
        ids = list(request.token_ids)
        check_ids(ids, self._tokenizer, "token_ids")
        data = self._tokenizer.decode(ids, skip_special=request.skip_special)
        return DetokenizeResponse(data=data, text=data.decode(errors="replace"))

    def _render_chat(self, request: RenderChatRequest) -> RenderChatResponse:
        prompt = render_chat(request.chat, self._template, "chat")
        return RenderChatResponse(prompt=prompt, token_ids=chat_ids(prompt, self._tokenizer))

    def _count_tokens(self, request: CountTokensRequest) -> CountTokensResponse:
        ids = prompt_ids(request.input, self._tokenizer, self._template, parent="input.")
        return CountTokensResponse(
            token_count=len(ids),
            context_length=self._context_length,
            fits=len(ids) < self._context_length,
        )
