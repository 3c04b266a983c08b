"""Serves ModelService: the store's models, and which of them are loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import grpc

from headrace.errors import DeadlineExceeded, ModelCorrupt, ModelInUse
from headrace.telemetry.logs import bind
from headrace.v1.model_pb2 import (
    IMPORT_QUANTIZATION_4_BITS,
    IMPORT_QUANTIZATION_8_BITS,
    IMPORT_QUANTIZATION_NONE,
    IMPORT_QUANTIZATION_UNSPECIFIED,
    CollectGarbageRequest,
    CollectGarbageResponse,
    CopyModelRequest,
    CopyModelResponse,
    DeleteModelRequest,
    DeleteModelResponse,
    GetModelRequest,
    GetModelResponse,
    ListedRunner,
    ListModelsRequest,
    ListModelsResponse,
    ListRunnersRequest,
    ListRunnersResponse,
    LoadModelRequest,
    LoadModelResponse,
    ModelQueue,
    StreamImportModelRequest,
    StreamImportModelResponse,
    StreamPullModelRequest,
    StreamPullModelResponse,
    StreamVerifyModelsRequest,
    StreamVerifyModelsResponse,
    UnloadModelRequest,
    UnloadModelResponse,
    VerifyCompleted,
    WatchModelsRequest,
    WatchModelsResponse,
)
from headrace.v1.model_pb2 import Model as ModelMessage
from headrace.v1.model_pb2_grpc import ModelServiceServicer
from headrace_server.events.views import RunnerView, runner_view
from headrace_server.relay import duration
from headrace_server.scheduling.planner import Planner, reports_of
from headrace_server.scheduling.shell import Scheduler
from headrace_server.services.messages import (
    garbage_message,
    model_message,
    runner_status,
    transfer_progress,
    verify_response,
)
from headrace_server.services.raw import seconds, time_remaining
from headrace_server.services.watch import Watch, model_view
from headrace_server.store import (
    ImportOptions,
    Manifest,
    OnProgress,
    Progress,
    PullOptions,
    Store,
)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
T = TypeVar("T")
_QUANTIZE: Mapping[int, Literal["stored", "none", "4", "8"]] = {
    IMPORT_QUANTIZATION_UNSPECIFIED: "stored",
    IMPORT_QUANTIZATION_NONE: "none",
    IMPORT_QUANTIZATION_4_BITS: "4",
    IMPORT_QUANTIZATION_8_BITS: "8",
}


class ModelServicer(ModelServiceServicer):
    """The store and the loaded models."""

    def __init__(
        self,
        store: Store,
        planner: Planner,
        scheduler: Scheduler,
        *,
        max_time: float,
        watch: Watch,
        on_change: Callable[[str, str], Awaitable[None]],
    ) -> None:
        """`max_time`: of a load whose client sets no deadline, in seconds. `on_change` is awaited
        after a change of the store, with the model's name and what has happened to it."""
        self._store = store
        self._planner = planner
        self._scheduler = scheduler
        self._max_time = max_time
        self._watch = watch
        self._on_change = on_change

    async def ListModels(self, request: ListModelsRequest, context: Context) -> ListModelsResponse:
        """Every model, or those that are loaded."""
        manifests = await asyncio.to_thread(self._store.list)
        if request.loaded:
            manifests = [manifest for manifest in manifests if self._runners(manifest)]
        return ListModelsResponse(models=[await self._message(item) for item in manifests])

    async def GetModel(self, request: GetModelRequest, context: Context) -> GetModelResponse:
        """One model. Raises ModelNotFound."""
        return GetModelResponse(model=await self._message(self._store.get(request.model)))

    async def StreamPullModel(
        self, request: StreamPullModelRequest, context: Context
    ) -> AsyncIterator[StreamPullModelResponse]:
        """Fetch a model. Raises what `Store.pull` raises."""

        def work(tell: OnProgress) -> Awaitable[Manifest]:
            options = PullOptions(
                name=request.name,
                revision=request.revision,
                files=tuple(request.files),
                sha256=request.sha256,
                allow_http=request.allow_http,
            )
            return self._told(self._store.pull(request.model, tell, options), "PULLED")

        async with aclosing(_transfer(work)) as steps:
            async for step in steps:
                if isinstance(step, Progress):
                    yield StreamPullModelResponse(progress=transfer_progress(step))
                else:
                    yield StreamPullModelResponse(completed=await self._message(step))

    async def StreamImportModel(
        self, request: StreamImportModelRequest, context: Context
    ) -> AsyncIterator[StreamImportModelResponse]:
        """Bring a model in. Raises what `Store.import_model` raises."""

        def work(tell: OnProgress) -> Awaitable[Manifest]:
            source, replace = Path(request.source_path), request.replace
            options = ImportOptions(
                _QUANTIZE[request.quantization],
                not request.unchecked,
                request.base if request.HasField("base") else None,
            )
            storing = self._store.import_model(
                source, request.model, tell, replace=replace, options=options
            )
            return self._told(storing, "IMPORTED")

        async with aclosing(_transfer(work)) as steps:
            async for step in steps:
                if isinstance(step, Progress):
                    yield StreamImportModelResponse(progress=transfer_progress(step))
                else:
                    yield StreamImportModelResponse(completed=await self._message(step))

    async def CopyModel(self, request: CopyModelRequest, context: Context) -> CopyModelResponse:
        """Give a second name. Raises ModelNotFound, InvalidRequest."""
        copying = asyncio.to_thread(self._store.copy, request.source, request.destination)
        return CopyModelResponse(
            model=await self._message(await _to_its_end(self._told(copying, "COPIED")))
        )

    async def DeleteModel(
        self, request: DeleteModelRequest, context: Context
    ) -> DeleteModelResponse:
        """Remove a name. Raises ModelNotFound, ModelInUse."""
        await asyncio.to_thread(self._store.check_deletable, request.model)
        async with self._released(request.model):
            freed = await asyncio.to_thread(self._store.delete, request.model)
        await self._on_change(request.model, "DELETED")
        return DeleteModelResponse(freed_bytes=freed)

    async def StreamVerifyModels(
        self, request: StreamVerifyModelsRequest, context: Context
    ) -> AsyncIterator[StreamVerifyModelsResponse]:
        """Read models and say what is damaged. Raises ModelNotFound, InvalidRequest."""
        async with aclosing(self._store.verifying(request.models)) as steps:
            async for step in steps:
                yield verify_response(step)
        garbage = garbage_message(await self._store.find_garbage())
        yield StreamVerifyModelsResponse(completed=VerifyCompleted(garbage=garbage))

    async def CollectGarbage(
        self, request: CollectGarbageRequest, context: Context
    ) -> CollectGarbageResponse:
        """Remove what belongs to no model, or say what that is."""
        store = self._store
        found = await (store.find_garbage() if request.dry_run else store.collect_garbage())
        return CollectGarbageResponse(garbage=garbage_message(found))

    async def LoadModel(self, request: LoadModelRequest, context: Context) -> LoadModelResponse:
        """Load a model. Raises what a completion raises before its first event."""
        model = await self._planner.model(request.model)
        bind(model=model.name)
        keep_alive = seconds(request.keep_alive) if request.HasField("keep_alive") else None
        remaining = time_remaining(context)
        limit = self._max_time if remaining is None else remaining
        deadline = self._scheduler.now() + limit
        try:
            async with asyncio.timeout_at(deadline):
                with self._scheduler.ask(
                    model, keep_alive=keep_alive, deadline=deadline, loads=True
                ) as ticket:
                    await ticket.granted()
        except TimeoutError:
            raise DeadlineExceeded(f"the model was not loaded within {limit:g} s") from None
        begin, end = ticket.load_span
        took = duration(end - begin)
        granted = (view for view in self._every_runner() if view.id == ticket.life.id)
        now = self._scheduler.now()
        status = next((runner_status(view, now) for view in granted), None)
        return LoadModelResponse(runner=status, load_time=took)

    async def UnloadModel(
        self, request: UnloadModelRequest, context: Context
    ) -> UnloadModelResponse:
        """Stop a model's runners once they are idle. Raises ModelNotFound."""
        runners = self._runners(self._store.get(request.model))
        stopped = await self._unload({runner.key for runner in runners})
        return UnloadModelResponse(stopped=stopped)

    async def ListRunners(
        self, request: ListRunnersRequest, context: Context
    ) -> ListRunnersResponse:
        """Every runner, asked for its own report, and who waits."""
        found = self._scheduler.runners()
        reports = await reports_of(life for _, life in found)
        now = self._scheduler.now()
        return ListRunnersResponse(
            runners=[
                ListedRunner(status=runner_status(runner_view(slot, life), now), report=report)
                for (slot, life), report in zip(found, reports, strict=True)
            ],
            queues=[
                ModelQueue(model=name, waiting=count)
                for name, count in sorted(self._scheduler.state.queues().items())
            ],
            memory_budget_bytes=self._scheduler.limits.memory,
        )

    async def WatchModels(
        self, request: WatchModelsRequest, context: Context
    ) -> AsyncIterator[WatchModelsResponse]:
        """All models, then their changes. Raises Draining at the controller's end."""
        async with aclosing(self._watch.responses(request)) as responses:
            async for response in responses:
                yield response

    @asynccontextmanager
    async def _released(self, name: str) -> AsyncIterator[None]:
        """Within this, a model whose last name is `name` has no runner and gets none.

        Raises ModelInUse.
        """
        try:
            manifest = self._store.get(name)
        except ModelCorrupt:
            yield  # Damaged models can be removed too, and are not loaded under this name.
            return
        listed = await asyncio.to_thread(self._store.list)
        if any(m.digest == manifest.digest and m.full_name != manifest.full_name for m in listed):
            yield
            return
        with self._planner.leaving(manifest.digest):
            keys = self._planner.keys(manifest.digest)
            used = self._planner.adapters.in_use(manifest.digest)
            if used or any(map(self._scheduler.in_use, keys)):
                raise ModelInUse(
                    f"{manifest.full_name} is serving requests; try again when they have ended",
                    model=manifest.full_name,
                )
            await self._unload(keys)
            yield

    async def _told(self, storing: Awaitable[Manifest], why: str) -> Manifest:
        """The model once it is stored and that is told of, whether or not its client stays."""
        manifest = await storing
        await _to_its_end(self._on_change(manifest.full_name, why))
        return manifest

    async def _message(self, manifest: Manifest) -> ModelMessage:
        model = await self._planner.plan(manifest)
        return model_message(model, self._runners(manifest), self._scheduler.now())

    def _runners(self, manifest: Manifest) -> list[RunnerView]:
        model = model_view(self._planner, manifest)
        return [view for view in self._every_runner() if model.served_by(view)]

    def _every_runner(self) -> list[RunnerView]:
        return [runner_view(*found) for found in self._scheduler.runners()]

    async def _unload(self, keys: Collection[str]) -> int:
        return sum(await asyncio.gather(*map(self._scheduler.unload, keys)))


async def _to_its_end(work: Awaitable[T]) -> T:
    """What it gives; a cancelled caller leaves only once it is done."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _transfer(
    work: Callable[[OnProgress], Awaitable[Manifest]],
) -> AsyncGenerator[Progress | Manifest, None]:
    """The progress of a transfer, as fast as the reader takes it, then the model.

    Closing this early cancels the transfer and waits until it has cleaned up.
    """
    latest: Progress | None = None
    news = asyncio.Event()

    def tell(progress: Progress) -> None:
        nonlocal latest
        latest = progress
        news.set()

    task = asyncio.ensure_future(work(tell))
    task.add_done_callback(lambda _: news.set())
    try:
        while not task.done():
            await news.wait()
            news.clear()
            if latest is not None:
                progress, latest = latest, None
                yield progress
        yield task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
