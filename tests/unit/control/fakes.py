"""A runner in this process, for what a real one cannot be made to do: a gRPC server with a script.

The process around it is imagined: `die` breaks its connections first and tells of the death later,
as it is with a real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from headrace.rpc.service import server_interceptors
from headrace.v1.completion_pb2 import (
    CompletionCompleted,
    CompletionDelta,
    CompletionStarted,
    StreamCompletionRequest,
    StreamCompletionResponse,
)
from headrace.v1.completion_pb2_grpc import (
    CompletionServiceServicer,
    add_CompletionServiceServicer_to_server,
)
from headrace.v1.image_pb2 import StreamImageRequest, StreamImageResponse
from headrace.v1.image_pb2_grpc import ImageServiceServicer, add_ImageServiceServicer_to_server
from headrace.v1.runner_pb2 import GetRunnerRequest, GetRunnerResponse
from headrace_server.runners.diagnosis import Death, DeathCause
from headrace_server.runners.lifecycle import State
from headrace_server.runners.supervisor import RunnerDied
from headrace_server.scheduling.loading import Load
from headrace_server.scheduling.planner import connect
from headrace_server.scheduling.state import Policy
from headrace_server.scheduling.ticket import Runner, Wanted
from headrace_server.store.manifest import AdapterFacts, ImageFacts, Manifest, ModelFile

Context = grpc.aio.ServicerContext[Any, Any]
Script = Callable[["FakeRunner", Any, Context], AsyncIterator[Any]]


@dataclass(frozen=True)
class FakeModel:
    """A model that the scheduler may want."""

    key: str = "sha256:fake dressed"
    digest: str = "sha256:fake"
    needs: int = 10
    policy: Policy = field(default_factory=Policy)
    name: str = "fake:latest"


class FakeRunner(CompletionServiceServicer, ImageServiceServicer):
    """Serves its streams by a script, and an empty report, from a socket in `folder`."""

    def __init__(self, runner_id: str, folder: Path, script: Script) -> None:
        self.id = runner_id
        self.pid: int | None = 4711
        self.state = State.LOADING
        self.fraction = 0.0
        self.loaded = asyncio.Event()
        self.reports = asyncio.Event()
        """Cleared while it does not answer who asks for its report."""
        self.reports.set()
        self.calls: list[dict[str, Any]] = []
        """The metadata of each call."""
        self.requests: list[bytes] = []
        self.ended: list[str] = []
        """How each call ended, as the runner saw it."""
        self.cancelled = asyncio.Event()
        self.has_arrived: Callable[[int], Awaitable[None]] | None = None
        """Waits until the client has so many tokens: what is on its way when a connection breaks
        may be lost."""
        self._death: asyncio.Future[Death] = asyncio.get_running_loop().create_future()
        self.dead: asyncio.Task[Death] = asyncio.create_task(self._live(), name=runner_id)
        self._address = f"unix:{folder}/{runner_id}.sock"
        self._script = script
        self._dying: asyncio.Task[None] | None = None
        self._server: grpc.aio.Server | None = None
        self._channel: grpc.aio.Channel | None = None

    @property
    def channel(self) -> grpc.aio.Channel:
        assert self._channel is not None
        return self._channel

    async def ready(self) -> None:
        waiting = asyncio.create_task(self.loaded.wait())
        await asyncio.wait({waiting, self.dead}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.dead.done():
            raise RunnerDied(self.dead.result())
        self._server = grpc.aio.server(interceptors=server_interceptors())
        add_CompletionServiceServicer_to_server(self, self._server)
        add_ImageServiceServicer_to_server(self, self._server)
        self._server.add_generic_rpc_handlers([self._reporting()])
        self._server.add_insecure_port(self._address)
        await self._server.start()
        self._channel = connect(self._address)
        self.state = State.SERVING

    async def stop(self, grace: float) -> Death:
        if not self._death.done():
            self._death.set_result(Death("EXITED", "it was stopped", expected=True))
        return await asyncio.shield(self.dead)

    async def die(
        self, cause: DeathCause = "SIGNAL", delay: float = 0.0, *, perhaps_memory: bool = False
    ) -> None:
        """Break off every call, this one included; the process is reaped `delay` seconds later."""
        death = Death(cause, "the runner was killed", perhaps_memory=perhaps_memory)
        self._dying = asyncio.create_task(self._die(death, delay))
        await asyncio.shield(self._dying)

    async def _die(self, death: Death, delay: float) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
        await asyncio.sleep(delay)
        self._death.set_result(death)

    async def _live(self) -> Death:
        death = await self._death
        self.state = State.DEAD
        if self._server is not None:
            await self._server.stop(None)
        if self._channel is not None:
            await self._channel.close()
        return death

    def _reporting(self) -> grpc.GenericRpcHandler:
        async def report(request: GetRunnerRequest, context: Context) -> GetRunnerResponse:
            await self.reports.wait()
            return GetRunnerResponse()

        method = grpc.unary_unary_rpc_method_handler(
            report, GetRunnerRequest.FromString, GetRunnerResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler(
            "headrace.v1.RunnerService", {"GetRunner": method}
        )

    async def StreamCompletion(
        self, request: StreamCompletionRequest, context: Context
    ) -> AsyncIterator[StreamCompletionResponse]:
        async with aclosing(self._play(request, context)) as messages:
            async for message in messages:
                yield message

    async def StreamImage(
        self, request: StreamImageRequest, context: Context
    ) -> AsyncIterator[StreamImageResponse]:
        async with aclosing(self._play(request, context)) as messages:
            async for message in messages:
                yield message

    async def _play(self, request: Message, context: Context) -> AsyncGenerator[Any, None]:
        self.calls.append(dict(context.invocation_metadata() or ()))
        self.requests.append(request.SerializeToString())
        try:
            async for message in self._script(self, request, context):
                yield message
        except (asyncio.CancelledError, GeneratorExit):
            # The latter where the end comes while a message is being sent.
            self.cancelled.set()
            raise


@dataclass
class FakeLauncher:
    """Starts fake runners that load at once, unless told otherwise."""

    folder: Path
    script: Script
    hold: bool = False
    """Whether loads wait until the test sets `loaded`."""
    runners: list[FakeRunner] = field(default_factory=list)
    launched: asyncio.Queue[FakeRunner] = field(default_factory=asyncio.Queue)
    """The same, for a test to wait for the next one."""
    before: Callable[[], Awaitable[None]] | None = None
    """Run before each launch."""
    has_arrived: Callable[[int], Awaitable[None]] | None = None
    """Of all its runners."""

    async def launch(self, runner_id: str, wanted: Wanted, load: Load) -> Runner:
        if self.before is not None:
            await self.before()
        runner = FakeRunner(runner_id, self.folder, self.script)
        runner.has_arrived = self.has_arrived
        if not self.hold:
            runner.loaded.set()
        self.runners.append(runner)
        self.launched.put_nowait(runner)
        return runner

    async def measure(self, runner: Runner, wanted: Wanted) -> int | None:
        return wanted.needs


def started() -> StreamCompletionResponse:
    return StreamCompletionResponse(started=CompletionStarted(id="x", prompt_tokens=3, seed=77))


def delta(tokens: int, choice: int = 0, new: int = 1) -> StreamCompletionResponse:
    """So many new tokens, which make `tokens`."""
    ids = range(tokens - new, tokens)
    return StreamCompletionResponse(
        delta=CompletionDelta(text="t" * new, choice=choice, token_ids=ids, output_tokens=tokens)
    )


def completed() -> StreamCompletionResponse:
    message = StreamCompletionResponse(completed=CompletionCompleted())
    message.completed.timings.queue.FromMilliseconds(250)
    return message


FACTS = ImageFacts(
    width=64,
    height=64,
    size_step=16,
    min_size=32,
    max_size=128,
    steps=20,
    max_steps=50,
    guidance=None,
    negative_prompt=False,
    max_input_images=0,
    strength=None,
    max_batch=8,
    working_bytes=1000,
)


def _digest(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


def put_manifest(home: Path, name: str, kind: str, base: str | None = None) -> None:
    """Give the store under `home` a model that has no files; `base`: of an adapter, which is
    whole without any."""
    manifest = Manifest(
        name=name,
        tag="latest",
        kind=kind,
        format="mlx",
        architecture="llama",
        digest=f"sha256:{_digest(name)}",
        files=() if base else (ModelFile("model.safetensors", 10, 64 * "0"),),
        tensor_bytes=100,
        parameters=50,
        context_length=128,
        quantization="",
        layers=1,
        kv_heads=1,
        head_dim=1,
        vocab_size=10,
        chat_template=None,
        license=None,
        source="test",
        created_at="2026-01-02T03:04:05+00:00",
        image=FACTS if kind == "image" else None,
        adapter=AdapterFacts(f"{base}:latest", _digest(base), 4, 1, ("q",)) if base else None,
    )
    path = home / "models" / name / f"{manifest.tag}.json"
    path.parent.mkdir(parents=True)
    path.write_text(manifest.to_json())
