"""The client for asyncio: as in `client`, awaited."""

# ruff: noqa: ASYNC109 (a timeout here is the deadline that goes to the server with the call)

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message as ProtoMessage

from headrace import _calls, _model_calls, types
from headrace._aio_streams import (
    AsyncCompletionStream,
    AsyncImageStream,
    AsyncModelWatch,
    AsyncStream,
    AsyncTransferStream,
    AsyncVerifyStream,
)
from headrace._endpoint import Endpoint
from headrace._requests import deadline
from headrace._trace import TraceSlot, aio_trace_ids, failure
from headrace.telemetry.rpc import aio_client_interceptors
from headrace.types import (
    ChatMessage,
    CompletionOptions,
    Continuation,
    EmbeddingInput,
    ImageOptions,
    ScoreOptions,
)

_MessageT = TypeVar("_MessageT", bound=ProtoMessage)
_ResultT = TypeVar("_ResultT")
_StreamT = TypeVar("_StreamT", bound=AsyncStream[Any, Any])


class AsyncClient:
    """A connection to a controller, or to a runner.

    It connects at the first call and belongs to the event loop that runs then. Close it, or use it
    in an `async with` block. Its methods take and raise what those of `Client` do, where their
    arguments are explained.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        timeout: float | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
    ) -> None:
        """Prepares a connection.

        Args:
            target: "host:port", "unix:/path", "https://host:port" for TLS, or another target of
                gRPC. None: the environment's HEADRACE_HOST, else 127.0.0.1:50151.
            timeout: seconds that a call may take, unless it says otherwise. None: no limit.
            credentials: for TLS. None: with "https://" those of HEADRACE_TLS_CA,
                HEADRACE_CLIENT_CERT and HEADRACE_CLIENT_KEY, else the connection is not encrypted.
            token: what the server knows this client by. None: HEADRACE_TOKEN, if it is set, to
                whatever target; "": none.

        Raises:
            InvalidRequest: the token would travel in the clear, or a file cannot be read.
        """
        self._timeout = deadline(timeout, None)
        self._endpoint = Endpoint.resolve(target, credentials, token)
        self.target = self._endpoint.target
        self._opened: grpc.aio.Channel | None = None

    async def close(self) -> None:
        """Closes the connection; calls that run are cancelled."""
        if self._opened is not None:
            await self._opened.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def stream_completion(
        self,
        model: str,
        prompt: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        token_ids: Iterable[int] | None = None,
        timeout: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> AsyncCompletionStream:
        """Generates token by token. Exactly one of the three inputs is required."""
        call = _calls.stream_completion(model, prompt, messages, token_ids, options)
        return self._stream(AsyncCompletionStream, call, timeout)

    async def complete(
        self,
        model: str,
        prompt: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        token_ids: Iterable[int] | None = None,
        timeout: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> types.Completion:
        """Generates, and gives the whole at its end. Takes what `stream_completion` takes."""
        call = _calls.stream_completion(model, prompt, messages, token_ids, options)
        async with self._stream(AsyncCompletionStream, call, timeout) as stream:
            return await stream.collect()

    def stream_image(
        self,
        prompt: str,
        *,
        model: str,
        timeout: float | None = None,
        **options: Unpack[ImageOptions],
    ) -> AsyncImageStream:
        """Draws images, and tells how it goes; the stream's result is the files."""
        return self._stream(AsyncImageStream, _calls.stream_image(prompt, model, options), timeout)

    async def image(
        self,
        prompt: str,
        *,
        model: str,
        timeout: float | None = None,
        **options: Unpack[ImageOptions],
    ) -> tuple[types.ImageResult, ...]:
        """Draws images and gives their files, by index. Takes what `stream_image` takes."""
        call = _calls.stream_image(prompt, model, options)
        async with self._stream(AsyncImageStream, call, timeout) as stream:
            return (await stream.collect()).images

    async def embed(
        self,
        model: str,
        inputs: Iterable[EmbeddingInput],
        *,
        dimensions: int | None = None,
        normalize: bool | None = None,
        truncate: bool | None = None,
        keep_alive: float | timedelta | None = None,
        timeout: float | None = None,
    ) -> types.Embeddings:
        """Gives a vector for each input."""
        call = _calls.embed(model, inputs, dimensions, normalize, truncate, keep_alive)
        return await self._unary(call, timeout)

    async def score(
        self,
        model: str,
        prompt: str | None = None,
        *,
        continuations: Iterable[Continuation],
        messages: Sequence[ChatMessage] | None = None,
        token_ids: Iterable[int] | None = None,
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> types.Scores:
        """Says how likely each continuation of a prompt is. See `Client.score`."""
        call = _calls.score_continuations(
            model, prompt, continuations, messages, token_ids, options
        )
        return await self._unary(call, timeout)

    async def tokenize(
        self,
        model: str,
        text: str,
        *,
        add_special: bool | None = None,
        pieces: bool | None = None,
        timeout: float | None = None,
    ) -> types.Tokens:
        """Gives the tokens of a text."""
        return await self._unary(_calls.tokenize(model, text, add_special, pieces), timeout)

    async def detokenize(
        self,
        model: str,
        token_ids: Iterable[int],
        *,
        skip_special: bool | None = None,
        timeout: float | None = None,
    ) -> types.Detokenized:
        """Gives the text of tokens; special tokens are left out with `skip_special`."""
        return await self._unary(_calls.detokenize(model, token_ids, skip_special), timeout)

    async def render_chat(
        self,
        model: str,
        messages: Sequence[ChatMessage],
        *,
        template_options: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        timeout: float | None = None,
    ) -> types.RenderedChat:
        """Puts a chat into the model's template, as a completion would."""
        call = _calls.render_chat(model, messages, template_options, add_generation_prompt)
        return await self._unary(call, timeout)

    async def count_tokens(
        self,
        model: str,
        prompt: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        token_ids: Iterable[int] | None = None,
        timeout: float | None = None,
    ) -> types.TokenCount:
        """Says how long a prompt is and whether it fits. Exactly one input is required."""
        return await self._unary(_calls.count_tokens(model, prompt, messages, token_ids), timeout)

    async def list_models(
        self, *, loaded: bool | None = None, timeout: float | None = None
    ) -> tuple[types.Model, ...]:
        """Gives the models of the store by name; only those that are loaded with `loaded`."""
        return await self._unary(_model_calls.list_models(loaded), timeout)

    async def list_runners(self, *, timeout: float | None = None) -> types.RunnersSnapshot:
        """Gives the runners with their own reports, and who waits for them."""
        return await self._unary(_model_calls.list_runners(), timeout)

    async def get_model(self, model: str, *, timeout: float | None = None) -> types.Model:
        """Gives one model of the store."""
        return await self._unary(_model_calls.get_model(model), timeout)

    def pull_model(
        self,
        model: str,
        *,
        name: str | None = None,
        revision: str | None = None,
        files: Iterable[str] = (),
        sha256: str | None = None,
        allow_http: bool | None = None,
        timeout: float | None = None,
    ) -> AsyncTransferStream:
        """Fetches a model into the store; the stream's result is the model. As `Client` does."""
        call = _model_calls.pull_model(
            model,
            name=name,
            revision=revision,
            files=files,
            sha256=sha256,
            allow_http=allow_http,
        )
        return self._stream(AsyncTransferStream, call, timeout)

    def import_model(
        self,
        source: str | Path,
        model: str,
        *,
        replace: bool | None = None,
        quantize: types.Quantize | None = None,
        unchecked: bool | None = None,
        base: str | None = None,
        timeout: float | None = None,
    ) -> AsyncTransferStream:
        """Brings a model on the controller's machine into the store."""
        call = _model_calls.import_model(source, model, replace, quantize, unchecked, base)
        return self._stream(AsyncTransferStream, call, timeout)

    async def copy_model(
        self, source: str, destination: str, *, timeout: float | None = None
    ) -> types.Model:
        """Gives a model a second name. No weights are copied."""
        return await self._unary(_model_calls.copy_model(source, destination), timeout)

    async def delete_model(self, model: str, *, timeout: float | None = None) -> int:
        """Removes a name, and the files that no other has. Gives the bytes freed."""
        return await self._unary(_model_calls.delete_model(model), timeout)

    def verify_models(
        self, models: Iterable[str] = (), *, timeout: float | None = None
    ) -> AsyncVerifyStream:
        """Reads every byte of models and compares it with what was stored."""
        return self._stream(AsyncVerifyStream, _model_calls.verify_models(models), timeout)

    async def collect_garbage(
        self, *, dry_run: bool | None = None, timeout: float | None = None
    ) -> types.Garbage:
        """Removes what takes room in the store and belongs to no model, and gives what that was."""
        return await self._unary(_model_calls.collect_garbage(dry_run), timeout)

    async def load_model(
        self,
        model: str,
        *,
        keep_alive: float | timedelta | None = None,
        timeout: float | None = None,
    ) -> types.Loaded:
        """Loads a model and returns when it serves."""
        return await self._unary(_model_calls.load_model(model, keep_alive), timeout)

    async def unload_model(self, model: str, *, timeout: float | None = None) -> int:
        """Stops a model's runners once their requests have ended. Gives how many there were."""
        return await self._unary(_model_calls.unload_model(model), timeout)

    def watch_models(
        self, *, resume_token: str | None = None, timeout: float | None = None
    ) -> AsyncModelWatch:
        """Tells all models and their runners, then every change of them."""
        return self._stream(AsyncModelWatch, _model_calls.watch_models(resume_token), timeout)

    async def health(self, service: str = "", *, timeout: float | None = None) -> bool:
        """Says whether the server, one of its services, or "model/<name>" serves."""
        return await self._unary(_calls.health(service), timeout)

    @property
    def _channel(self) -> grpc.aio.Channel:
        # Opened at the first call: a channel belongs to the event loop that runs then.
        if self._opened is None:
            target, options = self.target, self._endpoint.options
            tracing = aio_client_interceptors(target)
            interceptors = [*tracing, *aio_trace_ids(self._endpoint.metadata)]
            self._opened = (
                grpc.aio.secure_channel(
                    target, self._endpoint.credentials, options, interceptors=interceptors
                )
                if self._endpoint.credentials
                else grpc.aio.insecure_channel(target, options, interceptors=interceptors)
            )
        return self._opened

    async def _unary(
        self, call: _calls.Unary[_MessageT, _ResultT], timeout: float | None
    ) -> _ResultT:
        method: Callable[..., Awaitable[_MessageT]] = self._channel.unary_unary(
            call.method,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.answer.FromString,
        )
        with TraceSlot() as trace:
            try:
                answer = await method(
                    call.request,
                    timeout=deadline(timeout, self._timeout),
                    metadata=_calls.routing(call.request),
                )
            except grpc.RpcError as error:
                raise failure(error, trace) from error
        return call.convert(answer)

    def _stream(
        self,
        kind: type[_StreamT],
        call: _calls.Streaming[Any, Any, Any],
        timeout: float | None,
    ) -> _StreamT:
        method: Callable[..., Any] = self._channel.unary_stream(
            call.method,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.answer.FromString,
        )
        with TraceSlot() as trace:
            responses = method(
                call.request,
                timeout=deadline(timeout, self._timeout),
                metadata=_calls.routing(call.request),
            )
        return kind(responses, call.fold, trace)
