"""Wires the controller together: bind, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio

from headrace.errors import HeadraceError
from headrace.host import machine as host
from headrace.rpc.health import NOT_SERVING, SERVICE_UNKNOWN, SERVING, HealthServicer
from headrace.rpc.protection import OPEN, Protection
from headrace.rpc.reflection import enable_reflection
from headrace.rpc.service import server_interceptors
from headrace.telemetry.setup import set_level
from headrace.v1 import model_pb2_grpc
from headrace_server import hosting
from headrace_server.config import ServerConfig, changes, names_of, taken_over
from headrace_server.events.recorder import Recorder
from headrace_server.events.views import ModelView, runner_view
from headrace_server.listening import SETTLED, Address
from headrace_server.monitoring import levels, serve_metrics
from headrace_server.predecessor import TAKEOVER, find
from headrace_server.relay import Relay
from headrace_server.runners.lifecycle import State
from headrace_server.runners.spares import Activity
from headrace_server.runners.supervisor import OnSpan
from headrace_server.scheduling.planner import Planner, policies
from headrace_server.scheduling.shell import Scheduler
from headrace_server.scheduling.state import Limits, Phase
from headrace_server.services.completion import CompletionServicer
from headrace_server.services.embedding import EmbeddingServicer
from headrace_server.services.image import ImageServicer
from headrace_server.services.model import ModelServicer
from headrace_server.services.score import ScoreServicer
from headrace_server.services.tokenize import TokenizeServicer
from headrace_server.services.watch import Watch, model_view
from headrace_server.store import Store

logger = logging.getLogger(__name__)

SERVICES = (
    "headrace.v1.CompletionService",
    "headrace.v1.TokenizeService",
    "headrace.v1.ModelService",
    "headrace.v1.ImageService",
    "headrace.v1.EmbeddingService",
    "headrace.v1.ScoreService",
)
_MEMORY_SHARE = 0.8
"""Of the memory that is available at the start, where the settings name no budget."""
_MEMORY_FLOOR = 512 << 20
_MEMORY_FLOOR_SHARE = 0.03
"""What has to stay available on the machine: so many bytes, or less where it is small. Below it
idle models go, since the kernel's own remedy is to kill whoever it likes."""
_LAST_WORDS = 1.0
"""Seconds for calls that are being ended to say so."""


class App:
    """One controller. Belongs to the event loop it is made on."""

    def __init__(
        self,
        config: ServerConfig,
        on_span: OnSpan | None = None,
        protection: Protection = OPEN,
    ) -> None:
        """`on_span`: takes the spans of runners, which report none without it."""
        self._config = config
        self._machine = host.describe()
        self._may_prepare = asyncio.Event()
        self._hosting = asyncio.create_task(self._prepare(), name="hosting")
        self._store = Store(config.home)
        limits = self._limits()
        planner = Planner(
            config,
            self._store,
            self._hosting,
            limits.memory,
            lambda _: self._scheduler.runner_changed(),
            self._activity,
            on_span,
        )
        self._planner = planner
        self._scheduler = Scheduler(
            limits, planner, self._runners_changed, shortage=self._memory_shortage
        )
        levels.observe(lambda: self._scheduler.state, self._memory_shortage)
        self._recorder = Recorder(self._scheduler.runners)
        self._relay = Relay(
            self._scheduler,
            max_time=config.max_stream_time,
            stall_timeout=config.stall_timeout,
        )
        self._health = HealthServicer()
        self._models: dict[str, ModelView] = {}
        self._rereading = asyncio.Lock()
        self._model_health: dict[str, int] = {}
        self._address = Address(
            config.listen, takeover=config.takeover, limits=config.connection_limits
        )
        self._metrics = AsyncExitStack()
        self._protection = protection
        self._server = grpc.aio.server(
            interceptors=server_interceptors(protection.access), options=self._address.options()
        )
        self._preloads: list[asyncio.Task[None]] = []
        self._add_services()

    async def start(self) -> str:
        """Listen; gives the address, with the port that was bound.

        Raises CannotListenError.
        """
        takeover = self._config.takeover
        if self._config.metrics_listen is not None:
            endpoint = serve_metrics(
                self._config.metrics_listen, self._scheduler.runners, shared=takeover
            )
            self._metrics.push_async_callback(endpoint.close)
        await self._reread_store()
        self._warn_of_missing_models()
        predecessor = await find(self._config.listen) if takeover else None
        try:
            if predecessor is not None:
                # It serves until this one can do so as well.
                await predecessor.may_go(self._config.listen, self._begin_to_load())
            address = self._address.bind(self._server, self._protection)
            await self._server.start()
            self._address.publish()
            extra = {"address": address, "pid": os.getpid()}
            logger.info("listening", extra=extra)
            if predecessor is not None:
                logger.info("taking over", extra={"predecessor": predecessor.pid})
                predecessor.tell()
            else:
                self._begin_to_load()
        finally:
            if predecessor is not None:
                predecessor.close()
        return address

    def _begin_to_load(self) -> list[asyncio.Task[None]]:
        self._may_prepare.set()
        self._preload(self._config.preload)
        return self._preloads

    async def hand_over(self) -> None:
        """Leave the address to a successor that serves there: return when no new call can come.

        Until then what comes on old connections is served as ever.
        """
        logger.info("handing over", extra={"seconds": SETTLED})
        self.let_go()
        await self._metrics.aclose()
        await asyncio.sleep(SETTLED)

    def let_go(self) -> None:
        """Take no new connection: another controller listens on the address."""
        self._address.let_go()

    async def reconfigure(self, config: ServerConfig) -> None:
        """Go on with other settings, as far as they can change while streams run.

        A runner whose options are others now takes nothing new, and goes when it is idle.
        """
        before = self._config
        for change in changes(before, config):
            if change.live:
                logger.info("setting changed: %s", change)
            else:
                logger.warning("setting needs a restart, and stays as it is: %s", change)
        keys = {name: self._key(name) for name in before.preload}
        self._config = config = taken_over(before, config)
        set_level(config.log_level.upper())
        limits = self._limits()
        self._planner.set_config(config, limits.memory)
        self._scheduler.set_limits(limits)
        await self._reread_store({})
        self._warn_of_missing_models()
        self._preload(
            name for name in config.preload if name not in keys or self._key(name) != keys[name]
        )

    def _key(self, name: str) -> str | None:
        """Of the runners that serve a model; None where the store has none of that name."""
        try:
            return self._planner.key(self._store.get(name))
        except HeadraceError:
            return None

    def _warn_of_missing_models(self) -> None:
        known = {name for model in self._models for name in names_of(model)}
        for name in self._config.models.keys() - known:
            logger.warning(
                "the store has no such model, whose settings wait", extra={"model": name}
            )

    async def drain(self, hasten: asyncio.Event) -> None:
        """Take nothing new; return when the running calls have ended, or their time is over."""
        logger.info("draining", extra={"grace": self._config.grace})
        self._health.shutdown()
        self._recorder.end()
        self._scheduler.drain()
        await self._planner.close()
        tasks = {
            asyncio.create_task(self._drained()),
            asyncio.create_task(hasten.wait()),
        }
        await asyncio.wait(tasks, timeout=self._config.grace, return_when=asyncio.FIRST_COMPLETED)
        await end(tasks)

    async def _drained(self) -> None:
        await self._relay.ended()  # Until then runners may be needed that are not there yet.
        await self._scheduler.drained()

    async def close(self) -> None:
        """End everything: calls, runners, the server and what it left on disk."""
        await end(self._preloads)
        self._health.shutdown()
        self._recorder.end()
        self._relay.end()
        await self._server.stop(_LAST_WORDS)
        await self._planner.close()
        await self._scheduler.close()
        await self._metrics.aclose()
        self._recorder.close()
        await end([self._hosting])
        self._address.close()
        logger.info("stopped")

    async def _prepare(self) -> hosting.Hosting:
        await self._may_prepare.wait()
        return await asyncio.to_thread(hosting.prepare, self._machine, self._config)

    def _limits(self) -> Limits:
        config = self._config
        return Limits(
            config.memory or int(self._machine.memory_available * _MEMORY_SHARE),
            queue_per_model=config.queue_per_model,
            queue_total=config.queue_total,
        )

    def _preload(self, names: Iterable[str]) -> None:
        self._preloads = [task for task in self._preloads if not task.done()]
        self._preloads += [asyncio.create_task(self._load(name)) for name in names]

    async def _load(self, name: str) -> None:
        try:
            model = await self._planner.model(name)
            with self._scheduler.ask(model, loads=True) as ticket:
                await ticket.granted()
        except HeadraceError as error:
            logger.warning("not preloaded: %s", error, extra={"model": name})

    def _add_services(self) -> None:
        server, planner, relay = self._server, self._planner, self._relay
        CompletionServicer(planner, relay).add_to(server)
        TokenizeServicer(planner, relay).add_to(server)
        ImageServicer(planner, relay).add_to(server)
        EmbeddingServicer(planner, relay).add_to(server)
        ScoreServicer(planner, relay).add_to(server)
        models = ModelServicer(
            self._store,
            planner,
            self._scheduler,
            max_time=self._config.max_stream_time,
            watch=Watch(self._recorder, planner, self._scheduler.now),
            on_change=self._store_changed,
        )
        model_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
        self._health.add_to(server)
        for service in ("", *SERVICES):
            self._health.set(service, SERVING)
        if self._config.takeover:
            self._health.set(TAKEOVER, SERVING)
        enable_reflection(server, SERVICES)

    def _memory_shortage(self) -> int:
        """Bytes that the machine lacks to what has to stay free on it."""
        floor = min(_MEMORY_FLOOR, int(self._machine.memory_total * _MEMORY_FLOOR_SHARE))
        return max(0, floor - host.memory_available())

    async def _store_changed(self, name: str, why: str) -> None:
        await self._reread_store({name: why})

    async def _reread_store(self, whys: Mapping[str, str] | None = None) -> None:
        """See which models the store has now, tell those who watch, and unload what has no name.

        `whys`: what has happened to a model of a name.
        """
        async with self._rereading:  # So that the last to look is the last to tell.
            listed = await asyncio.to_thread(self._store.list)
            models = {m.full_name: model_view(self._planner, m) for m in listed}
            for gone in self._models.keys() - models.keys():
                self._health.set(f"model/{gone}", SERVICE_UNKNOWN)
                self._model_health.pop(gone, None)
            self._models = models
            self._recorder.store_has([*models.values()], whys)
        self._publish_health()
        self._planner.store_has(listed)
        self._scheduler.keep_only(policies((m.key, m.options) for m in models.values()))

    def _runners_changed(self) -> None:
        self._publish_health()
        self._recorder.look()
        self._planner.look()

    def _activity(self) -> Activity:
        slots = [slot for slot, _ in self._scheduler.runners()]
        if any(slot.phase is Phase.LOADING for slot in slots):
            return Activity.LOADING
        return Activity.BUSY if any(slot.leases for slot in slots) else Activity.QUIET

    def _publish_health(self) -> None:
        """A model is SERVING while a runner of it is."""
        serving = {
            view.key
            for slot, life in self._scheduler.runners()
            if (view := runner_view(slot, life)).state is State.SERVING
        }
        for name, model in self._models.items():
            status = SERVING if model.key in serving else NOT_SERVING
            if self._model_health.get(name) != status:
                self._model_health[name] = status
                self._health.set(f"model/{name}", status)


async def end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks, and return when they are over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
