"""Handlers behind the interceptors, over real connections."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from headrace import errors
from headrace.errors import HeadraceError, from_rpc_error
from headrace.rpc.service import server_interceptors, validate
from headrace.telemetry.rpc import TelemetryServerInterceptor
from headrace.v1 import completion_pb2, completion_pb2_grpc, tokenize_pb2, tokenize_pb2_grpc

StatusCode = grpc.StatusCode
Request = completion_pb2.StreamCompletionRequest
Response = completion_pb2.StreamCompletionResponse
METHOD = "/headrace.v1.CompletionService/StreamCompletion"


def delta(text: str) -> Response:
    return Response(delta=completion_pb2.CompletionDelta(text=text))


class Completion(completion_pb2_grpc.CompletionServiceServicer):
    """Streams two deltas, then does what the test says."""

    def __init__(self) -> None:
        self.then: Callable[[Any], Awaitable[None]] | None = None
        self.calls = 0
        self.ended = asyncio.Event()
        self.ended_in: asyncio.Task[Any] | None = None

    async def StreamCompletion(self, request: Request, context: Any) -> AsyncIterator[Response]:
        self.calls += 1
        task = asyncio.current_task()
        try:
            yield delta("a")
            yield delta("b")
            if self.then:
                await self.then(context)
            if request.prompt == "flood":
                while True:
                    yield delta("x" * 60_000)
        finally:
            self.ended_in = asyncio.current_task()
            assert self.ended_in is task
            self.ended.set()


class Tokenize(tokenize_pb2_grpc.TokenizeServiceServicer):
    async def Tokenize(self, request: Any, context: Any) -> tokenize_pb2.TokenizeResponse:
        if request.text == "bug":
            raise KeyError("secret-token-in-the-message")
        return tokenize_pb2.TokenizeResponse(token_ids=[len(request.text)])

    async def CountTokens(self, request: Any, context: Any) -> tokenize_pb2.CountTokensResponse:
        await context.abort(StatusCode.ALREADY_EXISTS, "by hand")
        raise AssertionError

    async def Detokenize(self, request: Any, context: Any) -> tokenize_pb2.DetokenizeResponse:
        raise errors.NotImplementedYet("detokenizing comes later", method="Detokenize")


@pytest.fixture
def completion() -> Completion:
    return Completion()


@pytest.fixture
async def channel(serve: Any, connect: Any, completion: Completion) -> Any:
    partial: Any = Tokenize
    target = await serve(
        lambda server: completion_pb2_grpc.add_CompletionServiceServicer_to_server(
            completion, server
        ),
        lambda server: tokenize_pb2_grpc.add_TokenizeServiceServicer_to_server(partial(), server),
        interceptors=server_interceptors(),
    )
    return await connect(target)


@pytest.fixture
def stream(channel: grpc.aio.Channel) -> Any:
    stub = completion_pb2_grpc.CompletionServiceStub(channel)
    return lambda prompt="hi", **more: stub.StreamCompletion(
        Request(model="m", prompt=prompt, **more), timeout=20
    )


@pytest.fixture
def tokenize(channel: grpc.aio.Channel) -> Any:
    return tokenize_pb2_grpc.TokenizeServiceStub(channel)


async def failure(call: Any) -> HeadraceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def collect(call: Any) -> str:
    return "".join([message.delta.text async for message in call])


async def test_answers_pass(stream: Any, tokenize: Any) -> None:
    assert await collect(stream()) == "ab"
    response = await tokenize.Tokenize(tokenize_pb2.TokenizeRequest(model="m", text="four"))
    assert list(response.token_ids) == [4]


async def test_an_error_mid_stream_keeps_what_was_sent(stream: Any, completion: Completion) -> None:
    async def crash(context: Any) -> None:
        raise errors.RunnerCrashed(cause="NATIVE_ABORT", tokens_sent=2)

    completion.then = crash
    call = stream()
    assert (await call.read()).delta.text == "a"
    assert (await call.read()).delta.text == "b"
    error = await failure(call.read())
    assert isinstance(error, errors.RunnerCrashed)
    assert error.code is StatusCode.ABORTED
    assert error.metadata["tokens_sent"] == "2"
    assert await collect_after_fix(stream, completion) == "ab"


async def collect_after_fix(stream: Any, completion: Completion) -> str:
    completion.then = None
    return await collect(stream())


async def test_unary_errors(tokenize: Any) -> None:
    error = await failure(tokenize.Detokenize(tokenize_pb2.DetokenizeRequest(model="m")))
    assert isinstance(error, errors.NotImplementedYet)
    assert error.metadata == {"method": "Detokenize"}


async def test_an_abort_passes(tokenize: Any) -> None:
    request = tokenize_pb2.CountTokensRequest(
        model="m", input=completion_pb2.CompletionInput(prompt="x")
    )
    error = await failure(tokenize.CountTokens(request))
    assert (error.code, error.message) == (StatusCode.ALREADY_EXISTS, "by hand")


async def test_a_bug_is_logged_and_leaks_nothing(
    tokenize: Any, caplog: pytest.LogCaptureFixture
) -> None:
    request = tokenize_pb2.TokenizeRequest(model="m", text="bug")
    error = await failure(tokenize.Tokenize(request))
    assert isinstance(error, errors.InternalError)
    assert error.message == "internal error; see the server's log"
    (record,) = (r for r in caplog.records if r.name == "headrace.rpc.service")
    assert record.levelno == logging.ERROR
    assert "secret-token-in-the-message" in str(record.exc_info)


async def test_a_failed_call_is_recorded_by_its_reason_and_not_by_its_message(
    serve: Any, connect: Any, completion: Completion, caplog: pytest.LogCaptureFixture
) -> None:
    """A message may quote the request."""

    async def fail(context: Any) -> None:
        raise errors.ContextLengthExceeded(limit=8, actual=9)

    completion.then = fail
    caplog.set_level(logging.INFO, "headrace.rpc.service")
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    target = await serve(
        lambda server: completion_pb2_grpc.add_CompletionServiceServicer_to_server(
            completion, server
        ),
        interceptors=[TelemetryServerInterceptor(provider), *server_interceptors()[1:]],
    )
    stub = completion_pb2_grpc.CompletionServiceStub(await connect(target))
    request = Request(model="m", prompt="hi")
    assert isinstance(await failure(collect(stub.StreamCompletion(request))), HeadraceError)
    request.sampling.temperature, request.sampling.top_p = -1, 2
    assert isinstance(await failure(collect(stub.StreamCompletion(request))), HeadraceError)

    told = [
        ("CONTEXT_LENGTH_EXCEEDED", "actual=9, limit=8"),
        ("INVALID_REQUEST", "field=sampling.temperature sampling.top_p"),
    ]
    names = ("headrace.error.reason", "headrace.error.details")
    spans = exporter.get_finished_spans()
    assert [tuple((span.attributes or {})[name] for name in names) for span in spans] == told
    assert [vars(line)["reason"] for line in caplog.records] == [reason for reason, _ in told]
    assert [vars(line)["details"] for line in caplog.records] == [details for _, details in told]
    assert {line.getMessage() for line in caplog.records} == {"call failed"}


async def test_a_cancelled_stream_ends_its_handler(stream: Any, completion: Completion) -> None:
    async def wait(context: Any) -> None:
        await asyncio.Event().wait()

    completion.then = wait
    call = stream()
    await call.read()
    call.cancel()
    await asyncio.wait_for(completion.ended.wait(), 5)


async def test_a_client_that_does_not_read_and_goes_away(
    stream: Any, completion: Completion
) -> None:
    """The handler waits in a send; its generator is still closed at once, in its own task."""
    call = stream("flood")
    for _ in range(5):
        await call.read()
    assert not completion.ended.is_set()
    call.cancel()
    await asyncio.wait_for(completion.ended.wait(), 5)
    assert completion.ended_in is not None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\x0a\x02\xff\xfe", "UTF-8"),
        (b"\x0a\x7f\xff", "decoded"),
        (b"\x12\x02\xed\xa0", "UTF-8"),
        (b"\x12\x03\xed\xa0\x80", "UTF-8"),
    ],
)
@pytest.mark.parametrize("unary", [True, False])
async def test_undecodable_requests_are_the_clients_fault(
    channel: Any, completion: Completion, data: bytes, says: str, unary: bool
) -> None:
    if unary:
        call: Any = channel.unary_unary("/headrace.v1.TokenizeService/Tokenize")(data)
    else:
        call = channel.unary_stream(METHOD)(data).read()
    error = await failure(call)
    assert isinstance(error, errors.InvalidRequest)
    assert error.code is StatusCode.INVALID_ARGUMENT
    assert says in error.message
    assert completion.calls == 0


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"sampling": {"temperature": -1}}, "sampling.temperature"),
        ({"sampling": {"top_p": 2}}, "sampling.top_p"),
        ({"sampling": {"seed": -5}}, "sampling.seed"),
        ({"sampling": {"logit_bias": {3: 1e9}}}, "sampling.logit_bias[3]"),
        ({"stop": {"strings": ["a", "", "b"]}}, "stop.strings[1]"),
        ({"stop": {"strings": ["a"] * 10_000}}, "stop.strings"),
        ({"prompt": "x" * 20_000_000}, "prompt"),
    ],
)
async def test_broken_rules_name_their_field(
    stream: Any, completion: Completion, fields: dict[str, Any], path: str
) -> None:
    error = await failure(stream(**fields).read())
    assert isinstance(error, errors.InvalidRequest)
    assert path in [violation.field for violation in error.violations]
    assert all(violation.description for violation in error.violations)
    assert path in error.message
    assert completion.calls == 0
    assert await collect(stream()) == "ab"


async def test_all_broken_rules_of_a_request_are_named(stream: Any) -> None:
    error = await failure(stream(sampling={"temperature": -1, "top_p": 2}).read())
    assert [v.field for v in error.violations] == ["sampling.temperature", "sampling.top_p"]


def test_a_large_request_is_checked_to_its_first_broken_rule() -> None:
    request = Request(model="m", prompt="x")
    request.stop.strings.extend([""] * 100_000)
    with pytest.raises(errors.InvalidRequest) as caught:
        validate(request)
    assert len(caught.value.violations) == 1


async def test_raw_handlers_pass_bytes(serve: Any, connect: Any) -> None:
    """A relay answers with bytes; what it answers for is not decoded again."""

    async def relay(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield request
        yield delta("raw").SerializeToString()
        raise errors.QueueFull(1, queue="controller", limit=2)

    behaviour: Any = relay
    handler: Any = grpc.unary_stream_rpc_method_handler(behaviour)
    generic = grpc.method_handlers_generic_handler(
        "headrace.v1.CompletionService", {"StreamCompletion": handler}
    )
    target = await serve(
        lambda server: server.add_generic_rpc_handlers((generic,)),
        interceptors=server_interceptors(),
    )
    call = (await connect(target)).unary_stream(METHOD)(b"\xff\xfe not a message")
    assert await call.read() == b"\xff\xfe not a message"
    assert Response.FromString(await call.read()).delta.text == "raw"
    assert isinstance(await failure(call.read()), errors.QueueFull)


async def test_an_error_of_any_size_arrives(stream: Any, completion: Completion) -> None:
    async def fail(context: Any) -> None:
        raise errors.LoadFailed("あ%\n" * 100_000, cause="LOAD_FAILED" * 1000)

    completion.then = fail
    call = stream()
    await call.read()
    await call.read()
    error = await failure(call.read())
    assert isinstance(error, errors.LoadFailed)
    assert error.message.startswith("あ%\nあ%")
