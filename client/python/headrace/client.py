"""The blocking client. Thin: `_calls` builds the requests and reads the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import grpc
from google.protobuf.message import Message as ProtoMessage

from headrace import _calls, _model_calls, types
from headrace._endpoint import Endpoint
from headrace._requests import deadline
from headrace._streams import (
    CompletionStream,
    ImageStream,
    ModelWatch,
    Stream,
    TransferStream,
    VerifyStream,
)
from headrace._trace import SyncTraceIds, TraceSlot, failure
from headrace.telemetry.rpc import SyncClientInterceptor
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
_StreamT = TypeVar("_StreamT", bound=Stream[Any, Any])


class Client:
    """A connection to a controller, or to a runner.

    It connects at the first call and may be shared by threads. Close it, or use it in a `with`
    block. Every method raises a `HeadraceError` when its call fails, and `InvalidRequest` before
    anything is sent when an argument cannot be.
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
        endpoint = Endpoint.resolve(target, credentials, token)
        self.target = endpoint.target
        channel = (
            grpc.secure_channel(self.target, endpoint.credentials, endpoint.options)
            if endpoint.credentials
            else grpc.insecure_channel(self.target, endpoint.options)
        )
        self._raw_channel = channel
        self._channel = grpc.intercept_channel(
            channel, SyncClientInterceptor(self.target), SyncTraceIds(endpoint.metadata)
        )

    def close(self) -> None:
        """Closes the connection; calls that run are cancelled."""
        self._raw_channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def stream_completion(
        self,
        model: str,
        prompt: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        token_ids: Iterable[int] | None = None,
        timeout: float | None = None,
        **options: Unpack[CompletionOptions],
    ) -> CompletionStream:
        """Generates token by token. Exactly one of the three inputs is required.

        Args:
            model: name of the model, such as "smollm2:135m".
            prompt: text, taken as it is, without a chat template.
            messages: a chat, put into the model's own template. Mappings with the keys "role"
                and "content" do as well as `Message`.
            token_ids: tokens, taken as they are.
            timeout: seconds that the whole stream may take; `math.inf` for no limit.
            options: see `CompletionOptions`.
        """
        call = _calls.stream_completion(model, prompt, messages, token_ids, options)
        return self._stream(CompletionStream, call, timeout)

    def complete(
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
        with self._stream(CompletionStream, call, timeout) as stream:
            return stream.collect()

    def stream_image(
        self,
        prompt: str,
        *,
        model: str,
        timeout: float | None = None,
        **options: Unpack[ImageOptions],
    ) -> ImageStream:
        """Draws images, and tells how it goes; the stream's result is the files.

        Args:
            prompt: what to draw.
            model: name of the model, such as "emoji:64".
            timeout: seconds that the whole stream may take; `math.inf` for no limit.
            options: see `ImageOptions`.
        """
        return self._stream(ImageStream, _calls.stream_image(prompt, model, options), timeout)

    def image(
        self,
        prompt: str,
        *,
        model: str,
        timeout: float | None = None,
        **options: Unpack[ImageOptions],
    ) -> tuple[types.ImageResult, ...]:
        """Draws images and gives their files, by index. Takes what `stream_image` takes.

        Raises:
            DataLoss: a file has not the checksum that the server names.
        """
        call = _calls.stream_image(prompt, model, options)
        with self._stream(ImageStream, call, timeout) as stream:
            return stream.collect().images

    def embed(
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
        """Gives a vector for each input.

        Args:
            model: name of the model, such as "minilm:l6".
            inputs: 1 to 2,048 texts; instead of a text also tokens, taken as they are.
            dimensions: length of the vectors, for models that can shorten them.
            normalize: whether they are scaled to length 1; None: they are.
            truncate: whether an input over the context is cut instead of being an error.
            keep_alive: how long the model stays loaded after this. See `load_model`.
            timeout: seconds that the call may take.
        """
        call = _calls.embed(model, inputs, dimensions, normalize, truncate, keep_alive)
        return self._unary(call, timeout)

    def score(
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
        """Says how likely each continuation of a prompt is. The prompt is computed once.

        Exactly one of `prompt`, `messages` and `token_ids` is required.

        Args:
            model: name of the model, such as "smollm2:135m".
            prompt: text that is continued.
            continuations: 1 to 1,024 texts; instead of a text also tokens, taken as they are.
            messages: a chat, put into the model's own template.
            token_ids: tokens, taken as they are.
            timeout: seconds that the call may take.
            options: see `ScoreOptions`.
        """
        call = _calls.score_continuations(
            model, prompt, continuations, messages, token_ids, options
        )
        return self._unary(call, timeout)

    def tokenize(
        self,
        model: str,
        text: str,
        *,
        add_special: bool | None = None,
        pieces: bool | None = None,
        timeout: float | None = None,
    ) -> types.Tokens:
        """Gives the tokens of a text.

        Args:
            model: name of the model.
            text: the text.
            add_special: whether to add the special tokens that the model wants around a text.
            pieces: whether to give each token's bytes and place.
            timeout: seconds that the call may take.
        """
        return self._unary(_calls.tokenize(model, text, add_special, pieces), timeout)

    def detokenize(
        self,
        model: str,
        token_ids: Iterable[int],
        *,
        skip_special: bool | None = None,
        timeout: float | None = None,
    ) -> types.Detokenized:
        """Gives the text of tokens; special tokens are left out with `skip_special`."""
        return self._unary(_calls.detokenize(model, token_ids, skip_special), timeout)

    def render_chat(
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
        return self._unary(call, timeout)

    def count_tokens(
        self,
        model: str,
        prompt: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        token_ids: Iterable[int] | None = None,
        timeout: float | None = None,
    ) -> types.TokenCount:
        """Says how long a prompt is and whether it fits. Exactly one input is required."""
        return self._unary(_calls.count_tokens(model, prompt, messages, token_ids), timeout)

    def list_models(
        self, *, loaded: bool | None = None, timeout: float | None = None
    ) -> tuple[types.Model, ...]:
        """Gives the models of the store by name; only those that are loaded with `loaded`."""
        return self._unary(_model_calls.list_models(loaded), timeout)

    def list_runners(self, *, timeout: float | None = None) -> types.RunnersSnapshot:
        """Gives the runners with their own reports, and who waits for them."""
        return self._unary(_model_calls.list_runners(), timeout)

    def get_model(self, model: str, *, timeout: float | None = None) -> types.Model:
        """Gives one model of the store."""
        return self._unary(_model_calls.get_model(model), timeout)

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
    ) -> TransferStream:
        """Fetches a model into the store; the stream's result is the model.

        Args:
            model: a name of the catalogue; or "hf:ORG/REPO", a repository of the Hugging Face hub;
                "https://…", the address of a GGUF file; "ollama:MODEL:TAG", of the Ollama store on
                the controller's machine.
            name: name to give it, where it is not of the catalogue. None: one made of its own.
            revision: branch, tag or commit of a repository. None: "main".
            files: paths or patterns of the weights in a repository, such as the one GGUF file of
                several. Empty: those that the repository suggests.
            sha256: of a GGUF file, in hex; needed for an address.
            allow_http: whether "http://" will do for hosts other than this machine.
            timeout: seconds that the pull may take.
        """
        call = _model_calls.pull_model(
            model,
            name=name,
            revision=revision,
            files=files,
            sha256=sha256,
            allow_http=allow_http,
        )
        return self._stream(TransferStream, call, timeout)

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
    ) -> TransferStream:
        """Brings a model on the controller's machine into the store.

        Args:
            source: absolute path there: a GGUF file, or a directory of MLX or Hugging Face; or that
                of an adapter (LoRA), in the form of mlx-lm or PEFT.
            model: name to give it.
            replace: whether a model of this name may be replaced.
            quantize: bits of the matrices of a language model, 4 or 8, or "none" for floating
                point; None keeps them as they are, where MLX can hold them so.
            unchecked: whether to take a language model without trying it out.
            base: name of the model that an adapter belongs to; needed for adapters alone.
            timeout: seconds that the import may take.
        """
        call = _model_calls.import_model(source, model, replace, quantize, unchecked, base)
        return self._stream(TransferStream, call, timeout)

    def copy_model(
        self, source: str, destination: str, *, timeout: float | None = None
    ) -> types.Model:
        """Gives a model a second name. No weights are copied."""
        return self._unary(_model_calls.copy_model(source, destination), timeout)

    def delete_model(self, model: str, *, timeout: float | None = None) -> int:
        """Removes a name, and the files that no other has. Gives the bytes freed."""
        return self._unary(_model_calls.delete_model(model), timeout)

    def verify_models(
        self, models: Iterable[str] = (), *, timeout: float | None = None
    ) -> VerifyStream:
        """Reads every byte of models and compares it with what was stored.

        A damaged file is no error: the stream's result has what was found of each model. From then
        on loads of that model fail with ModelCorrupt.

        Args:
            models: their names. None given: all models of the store.
            timeout: seconds that the verification may take; `math.inf` for no limit.
        """
        return self._stream(VerifyStream, _model_calls.verify_models(models), timeout)

    def collect_garbage(
        self, *, dry_run: bool | None = None, timeout: float | None = None
    ) -> types.Garbage:
        """Removes what takes room in the store and belongs to no model, and gives what that was;
        with `dry_run` it only says what there is."""
        return self._unary(_model_calls.collect_garbage(dry_run), timeout)

    def load_model(
        self,
        model: str,
        *,
        keep_alive: float | timedelta | None = None,
        timeout: float | None = None,
    ) -> types.Loaded:
        """Loads a model and returns when it serves.

        Args:
            model: name of the model.
            keep_alive: how long it stays without a request, in seconds; negative: until it is
                unloaded by hand; 0: until it is idle. None: the controller's default.
            timeout: seconds that the load may take.
        """
        return self._unary(_model_calls.load_model(model, keep_alive), timeout)

    def unload_model(self, model: str, *, timeout: float | None = None) -> int:
        """Stops a model's runners once their requests have ended. Gives how many there were."""
        return self._unary(_model_calls.unload_model(model), timeout)

    def watch_models(
        self, *, resume_token: str | None = None, timeout: float | None = None
    ) -> ModelWatch:
        """Tells all models and their runners, then every change of them.

        Args:
            resume_token: of an earlier watch's checkpoint, to be told what has changed since. One
                that is too old, or None, begins with a snapshot.
            timeout: seconds that the watch may take; `math.inf` for no limit.
        """
        return self._stream(ModelWatch, _model_calls.watch_models(resume_token), timeout)

    def health(self, service: str = "", *, timeout: float | None = None) -> bool:
        """Says whether the server, one of its services, or "model/<name>" serves."""
        return self._unary(_calls.health(service), timeout)

    def _unary(self, call: _calls.Unary[_MessageT, _ResultT], timeout: float | None) -> _ResultT:
        method: Callable[..., _MessageT] = self._channel.unary_unary(
            call.method,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.answer.FromString,
        )
        with TraceSlot() as trace:
            try:
                answer = method(
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
