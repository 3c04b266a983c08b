"""Calls to a runner, each with a limit of time, each stream held to the contract."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from headrace.errors import from_rpc_error
from headrace.rpc.options import channel_options
from headrace.v1.common_pb2 import TokenIds
from headrace.v1.completion_pb2 import (
    ChatInput,
    ChatMessage,
    ChatRole,
    ChoiceResult,
    CompletionCompleted,
    CompletionStarted,
    SamplingOptions,
    StopOptions,
    StreamCompletionRequest,
    StreamCompletionResponse,
    TokenLogprob,
)
from headrace.v1.completion_pb2_grpc import CompletionServiceStub
from headrace.v1.runner_pb2 import GetRunnerRequest, Runner, WatchRunnerRequest
from headrace.v1.runner_pb2_grpc import RunnerServiceStub
from headrace.v1.tokenize_pb2_grpc import TokenizeServiceStub

if TYPE_CHECKING:
    from headrace.v1.completion_pb2_grpc import CompletionServiceAsyncStub
    from headrace.v1.runner_pb2_grpc import RunnerServiceAsyncStub
    from headrace.v1.tokenize_pb2_grpc import TokenizeServiceAsyncStub

TIMEOUT = 60.0  # seconds for any one thing that a test waits for
MODEL = "the-model"
GREEDY = SamplingOptions(temperature=0)
ENDLESS = StopOptions(ignore_eos=True)


@dataclass
class Output:
    """What one choice has sent."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    borders: list[tuple[int, int]] = field(default_factory=list)
    """Tokens and characters so far, after each message."""


@dataclass
class Answer:
    """A whole stream, put together."""

    started: CompletionStarted = field(default_factory=CompletionStarted)
    outputs: dict[int, Output] = field(default_factory=lambda: defaultdict(Output))
    """By choice."""
    completed: CompletionCompleted = field(default_factory=CompletionCompleted)

    @property
    def choice(self) -> ChoiceResult:
        (choice,) = self.completed.choices
        return choice

    @property
    def output(self) -> Output:
        """That of the first choice."""
        return self.outputs[0]

    @property
    def text(self) -> str:
        return self.output.text

    @property
    def token_ids(self) -> list[int]:
        return self.output.token_ids

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return self.output.logprobs


class Stream:
    """One call of StreamCompletion. `answer` grows as it is read."""

    def __init__(self, call: Any, request: StreamCompletionRequest) -> None:
        self.call = call
        self._events: AsyncIterator[StreamCompletionResponse] = aiter(call)
        self.choices = request.n or 1
        self._resumed = Counter({0: len(request.resume_token_ids)})
        """Tokens that are not sent again, by choice."""
        self._resumed.update({c.index: len(c.token_ids) for c in request.resume_choices})
        self._seen: list[str] = []
        self.answer = Answer()
        self.prefilled = 0
        """Prompt tokens that are computed, as far as was told."""

    async def next(self) -> str | None:
        """Read one event; gives its kind, or None after the last. Raises the typed error."""
        try:
            async with asyncio.timeout(TIMEOUT):
                event = await anext(self._events, None)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        if event is None:
            assert self._seen[-1:] == ["completed"]
            return None
        kind = event.WhichOneof("event")
        assert kind is not None
        self._take(kind, event)
        self._seen.append(kind)
        return kind

    def _take(self, kind: str, event: StreamCompletionResponse) -> None:
        answer = self.answer
        assert "completed" not in self._seen
        match kind:
            case "started":
                assert "started" not in self._seen
                answer.started = event.started
            case "progress":
                self.prefilled = event.progress.prompt_tokens_done
            case "delta":
                assert "started" in self._seen
                assert event.delta.choice in range(self.choices)
                output = answer.outputs[event.delta.choice]
                output.text += event.delta.text
                output.token_ids += event.delta.token_ids
                output.logprobs += event.delta.logprobs
                output.borders.append((len(output.token_ids), len(output.text)))
                sent = self._resumed[event.delta.choice] + len(output.token_ids)
                assert event.delta.output_tokens == sent
            case "completed":
                answer.completed = event.completed
                assert [c.index for c in event.completed.choices] == list(range(self.choices))
                counts = [
                    self._resumed[choice] + len(answer.outputs[choice].token_ids)
                    for choice in range(self.choices)
                ]
                assert [c.output_tokens for c in event.completed.choices] == counts
                usage = event.completed.usage
                assert usage.output_tokens == sum(counts)
                assert usage.prompt_tokens == answer.started.prompt_tokens
                assert usage.cached_tokens == answer.started.cached_tokens

    async def until(self, kind: str) -> None:
        """Read up to an event of this kind."""
        while (found := await self.next()) != kind:
            assert found is not None, f"no {kind} came"

    async def rest(self) -> Answer:
        """Read to the end."""
        while await self.next() is not None:
            pass
        return self.answer


class Api:
    """The services of one runner."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.completion: CompletionServiceAsyncStub = CompletionServiceStub(channel)
        self.tokenize: TokenizeServiceAsyncStub = TokenizeServiceStub(channel)
        self.runner: RunnerServiceAsyncStub = RunnerServiceStub(channel)
        self._health: Any = HealthStub(channel)

    def stream(self, request: StreamCompletionRequest, **options: Any) -> Stream:
        call = self.completion.StreamCompletion(request, timeout=TIMEOUT, **options)
        return Stream(call, request)

    async def complete(self, request: StreamCompletionRequest) -> Answer:
        return await self.stream(request).rest()

    async def healthy(self, service: str = "") -> bool:
        request = HealthCheckRequest(service=service)
        answer: HealthCheckResponse = await self._health.Check(request, timeout=TIMEOUT)
        return bool(answer.status == HealthCheckResponse.SERVING)

    async def describe(self) -> Runner:
        return (await self.runner.GetRunner(GetRunnerRequest(), timeout=TIMEOUT)).runner

    async def watch_until(self, condition: Callable[[Runner], bool]) -> Runner:
        """Watch the runner until it is as wanted; gives it."""
        call = self.runner.WatchRunner(WatchRunnerRequest(), timeout=TIMEOUT)
        async for response in call:
            if condition(response.runner):
                call.cancel()
                return response.runner
        raise AssertionError("the watch ended")

    async def idle(self) -> Runner:
        return await self.watch_until(lambda r: r.load.running == r.load.waiting == 0)


@asynccontextmanager
async def connected(address: str, *options: tuple[str, Any]) -> AsyncIterator[Api]:
    """A connection of one's own, with further options of gRPC's."""
    settings = [*channel_options(address), *options]
    async with grpc.aio.insecure_channel(address, options=settings) as channel:
        yield Api(channel)


def prompt(text: str, max_tokens: int = 8, **fields: Any) -> StreamCompletionRequest:
    """A greedy completion of a text; `fields` are the request's others."""
    given = {"sampling": GREEDY} | fields
    return StreamCompletionRequest(model=MODEL, prompt=text, max_tokens=max_tokens, **given)


def tokens(ids: list[int], max_tokens: int = 8, **fields: Any) -> StreamCompletionRequest:
    """A greedy completion of tokens."""
    given = {"sampling": GREEDY} | fields
    return StreamCompletionRequest(
        model=MODEL, token_ids=TokenIds(ids=ids), max_tokens=max_tokens, **given
    )


def chat(text: str, max_tokens: int = 8, **fields: Any) -> StreamCompletionRequest:
    """A greedy answer to one message."""
    message = ChatMessage(role=ChatRole.CHAT_ROLE_USER, content=text)
    given = {"sampling": GREEDY} | fields
    return StreamCompletionRequest(
        model=MODEL, chat=ChatInput(messages=[message]), max_tokens=max_tokens, **given
    )
