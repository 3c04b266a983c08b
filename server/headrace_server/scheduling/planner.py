"""From a model's name to a running process: what to start, how large it is, and starting it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import grpc.aio

from headrace.errors import (
    LoadFailed,
    ModelNotFound,
    UnsupportedCapability,
    UnsupportedParameter,
)
from headrace.host.dtype import Dtype
from headrace.host.kernels import why_none
from headrace.rpc.options import channel_options
from headrace.telemetry import propagation
from headrace.v1.runner_pb2 import GetRunnerRequest
from headrace.v1.runner_pb2 import Runner as RunnerReport
from headrace.v1.runner_pb2_grpc import RunnerServiceStub
from headrace_server.config import ModelOptions, ServerConfig
from headrace_server.hosting import Hosting
from headrace_server.runners.lifecycle import Limits as LifeLimits
from headrace_server.runners.spares import Activity, is_wanted
from headrace_server.runners.spec import RunnerSpec
from headrace_server.runners.supervisor import OnSpan, RunningRunner, Supervisor
from headrace_server.scheduling import estimates, weights
from headrace_server.scheduling.adapters import MOST, Adapters
from headrace_server.scheduling.adapters import needs as adapter_needs
from headrace_server.scheduling.estimates import Estimate
from headrace_server.scheduling.loading import Load
from headrace_server.scheduling.state import Policy
from headrace_server.scheduling.ticket import Life, Runner, Wanted
from headrace_server.store import Manifest, Store

logger = logging.getLogger(__name__)

_REPORT_TIMEOUT = 5.0
"""Seconds for a runner to say what it holds."""
_LOOK_TIMEOUT = 1.0
"""The same, where somebody wants to see all of them."""


@dataclass(frozen=True)
class Model:
    """A model of the store, and how it would run here."""

    manifest: Manifest
    options: ModelOptions
    key: str
    """Names of one digest share a runner, unless their options ask for different ones."""
    dtype: Dtype
    """What the options come to here."""
    needs: int
    """Bytes of memory, as estimated."""
    adapter_bytes: int = 0
    """How many of them are for its adapters."""

    @property
    def name(self) -> str:
        """With its tag, whatever name or alias it was asked for by."""
        return self.manifest.full_name

    @property
    def digest(self) -> str:
        """Of its files."""
        return self.manifest.digest

    @cached_property
    def estimates(self) -> tuple[Estimate, ...]:
        """What it would need with other options."""
        if self.manifest.adapter is not None:
            return ()
        found = estimates.table(self.manifest, dtype=self.dtype)
        return tuple(replace(each, needs=each.needs + self.adapter_bytes) for each in found)

    @cached_property
    def policy(self) -> Policy:
        """How it is served."""
        return policy_of(self.options)


def policies(models: Iterable[tuple[str, ModelOptions]]) -> dict[str, Policy]:
    """How the models of each key are served. Names that share one get what any of them asks for."""
    found: dict[str, Policy] = {}
    for key, options in models:
        policy = policy_of(options)
        found[key] = found[key].with_that_of(policy) if key in found else policy
    return found


def policy_of(options: ModelOptions) -> Policy:
    """How a model with these options is served."""
    return Policy(
        concurrency=options.max_concurrency,
        keep_alive=options.keep_alive,
        pinned=options.pinned,
        replicas=options.replicas,
    )


def runner_key(digest: str, options: ModelOptions, by_budget: Dtype | None = None) -> str:
    """The key of the runners that serve these files with these options.

    `by_budget`: the type of the weights, where the memory budget has a say in it.
    """
    own = f"{digest} {options.of_the_runner}"
    return f"{own} {by_budget}" if by_budget else own


class Planner:
    """Knows the store, the machine and the settings; the scheduler's launcher."""

    def __init__(
        self,
        config: ServerConfig,
        store: Store,
        hosting: asyncio.Task[Hosting],
        memory: int,
        on_change: Callable[[RunningRunner], None],
        activity: Callable[[], Activity],
        on_span: OnSpan | None = None,
    ) -> None:
        """`hosting` may still be under way: what needs it waits. `memory`: the budget, in bytes.
        `activity`: what goes on, for a spare runner to be made by. `on_span`: takes the spans of
        runners; without it they report none."""
        self._config = config
        self._store = store
        self._hosting = hosting
        self._memory = memory
        self._has_kernels = not why_none()
        self._on_change = on_change
        self._activity = activity if is_wanted(config.spare, memory) else None
        self._on_span = on_span
        self._supervisor: Supervisor | None = None
        self._leaving: set[str] = set()
        self._keys: dict[str, set[str]] = {}
        self._models: dict[str, Model] = {}
        """By full name, as they were planned last."""
        self.adapters = Adapters()

    def set_config(self, config: ServerConfig, memory: int) -> None:
        """Plan by other settings from now on. What has been planned stays as it is."""
        self._config = config
        self._memory = memory
        self._models.clear()

    def options(self, manifest: Manifest) -> ModelOptions:
        """How a model of the store is served."""
        return self._config.options(manifest.full_name)

    def key(self, manifest: Manifest) -> str:
        """The key of the runners that serve a model of the store."""
        # What the machine has stays as it is, and is perhaps not known yet.
        options, directory = self.options(manifest), self._store.path(manifest)
        by_budget = weights.by_budget(
            manifest, options, directory, self._memory, has_kernels=self._has_kernels
        )
        return runner_key(manifest.digest, options, by_budget)

    def keys(self, digest: str) -> frozenset[str]:
        """Every key that models of these files have had so far."""
        return frozenset(self._keys.get(digest, ()))

    def store_has(self, manifests: Iterable[Manifest]) -> None:
        """Plan by what the store has now: forget the keys of other files, and know the adapters."""
        models = tuple(manifests)
        digests = {manifest.digest for manifest in models}
        changed = self.adapters.set(models)
        for digest in self._keys.keys() - digests:
            del self._keys[digest]
        kept = digests - changed
        self._models = {name: m for name, m in self._models.items() if m.digest in kept}

    async def model(self, name: str, kind: str | None = None) -> Model:
        """The model called `name`, if it is of the kind.

        Raises ModelNotFound, UnsupportedCapability, ModelCorrupt.
        """
        manifest = self._store.get(name)
        if manifest.adapter is not None:
            base = manifest.adapter.base
            raise UnsupportedCapability(
                f"{manifest.full_name} is an adapter of {base}; ask {base}, with it as the adapter",
                model=manifest.full_name,
                capability=kind or "load",
            )
        if kind is not None and manifest.kind != kind:
            raise UnsupportedCapability(
                f"{manifest.full_name} is a model for {manifest.kind}, not for {kind}",
                model=manifest.full_name,
                capability=kind,
            )
        model = await self.plan(manifest)
        # Checked last: nothing is awaited from here until the scheduler knows of the request.
        if model.digest in self._leaving:
            raise ModelNotFound(name, hint="it is being deleted")
        return model

    def adapter(self, model: Model, name: str | None) -> Manifest | None:
        """The adapter of a model that a request names; where it says None, that of the settings.

        None for "": no adapter. Looks at manifests alone: nothing may be awaited behind `model`,
        nor from here until `adapters.using`.
        Raises UnsupportedParameter, ModelCorrupt.
        """
        wanted = model.options.adapter if name is None else name
        if not wanted:
            return None
        try:
            found = self._store.adapter(model.manifest, wanted)
            if found.digest in self._leaving:
                what = f"{found.full_name} is being deleted"
                raise UnsupportedParameter(what, field="adapter")
            return found
        except UnsupportedParameter as error:
            if name is not None:
                raise
            what = f"the controller's settings name one, but {error.violations[0].description}"
            raise UnsupportedParameter(what, field="adapter") from None

    @contextmanager
    def leaving(self, digest: str) -> Iterator[None]:
        """While the files of a model are removed: nobody is given it."""
        self._leaving.add(digest)
        try:
            yield
        finally:
            self._leaving.discard(digest)

    async def plan(self, manifest: Manifest) -> Model:
        """How a model of the store would run here."""
        known = self._models.get(manifest.full_name)
        if known is not None and known.manifest is manifest:
            return known
        hosting = await asyncio.shield(self._hosting)
        options = self.options(manifest)
        device = hosting.machine.device
        directory = self._store.path(manifest)
        dtype = weights.dtype_of(manifest, options, directory, self._memory, hosting)
        if manifest.adapter is not None:
            needs = adapter_needs(manifest, device)
        else:
            needs = estimates.before_load(
                manifest, dtype=dtype, concurrency=options.max_concurrency, context=options.context
            )
        adapters = self.adapters.needs(manifest.digest, device)
        key = self.key(manifest)
        model = Model(manifest, options, key, dtype, needs + adapters, adapters)
        self._keys.setdefault(model.digest, set()).add(model.key)
        self._models[model.name] = model
        return model

    async def launch(self, runner_id: str, wanted: Wanted, load: Load) -> Runner:
        """Start a runner. It is told of the load, and what is said of it is part of that.

        Raises ModelCorrupt for a damaged directory, LoadFailed where MLX cannot run.
        """
        assert isinstance(wanted, Model)
        hosting = await asyncio.shield(self._hosting)
        if hosting.problem:
            raise LoadFailed(f"no model can be loaded here: {hosting.problem}", cause="LOAD_FAILED")
        await asyncio.to_thread(self._store.check, wanted.manifest)
        if self._supervisor is None:
            self._supervisor = Supervisor(
                hosting.environment,
                on_change=self._on_change,
                connect=connect,
                limits=LifeLimits(stalled=self._config.stall_timeout),
                activity=self._activity,
                on_span=self._on_span,
            )
        options = wanted.options
        spec = RunnerSpec(
            id=runner_id,
            model=wanted.name,
            digest=wanted.digest,
            model_dir=self._store.path(wanted.manifest),
            kind=wanted.manifest.kind,
            dtype=wanted.dtype,
            context=options.context,
            max_concurrency=wanted.policy.concurrency,
            prefix_cache=options.prefix_cache,
            drafts=options.drafts,
            adapters=self._store.snapshots if wanted.manifest.kind == "text" else None,
            max_adapters=MOST,
            stall_timeout=self._config.stall_timeout,
            log_level=self._config.log_level,
            core_dumps=self._config.core_dumps,
            report_spans=self._on_span is not None,
        )
        directory, memory = spec.model_dir, self._memory
        weights.tell(wanted.manifest, options, directory, memory, hosting, wanted.dtype)
        environment: dict[str, str] = {}
        propagation.inject_env(environment, load.context)
        return self._supervisor.start(spec, environment, load.lines)

    def look(self) -> None:
        """See whether it is time for a spare runner."""
        if self._supervisor and self._supervisor.spares:
            self._supervisor.spares.look()

    async def close(self) -> None:
        """End the spare runner, and make no other."""
        if self._supervisor and self._supervisor.spares:
            await self._supervisor.spares.close()

    async def measure(self, runner: Runner, wanted: Wanted) -> int | None:
        """The bytes to account for a loaded runner, by its own report.

        Its weights with what requests may come to, as estimated; or what it holds, where that is
        more already.
        """
        assert isinstance(wanted, Model)
        report = await _report_of(runner, _REPORT_TIMEOUT)
        if report is None:
            return None
        memory = report.memory
        if not memory.weights_bytes:
            return None
        expected = estimates.after_load(
            memory.weights_bytes,
            wanted.manifest,
            dtype=wanted.dtype,
            concurrency=wanted.options.max_concurrency,
            context=wanted.options.context,
        )
        expected += wanted.adapter_bytes
        return max(expected, memory.active_bytes + memory.cache_bytes)


async def reports_of(lives: Iterable[Life]) -> list[RunnerReport | None]:
    """What runners say of themselves, all asked at once; None for one that loads, or does not
    answer within a second."""

    async def ask(life: Life) -> RunnerReport | None:
        if life.runner is None or life.loaded_at is None:
            return None
        return await _report_of(life.runner, _LOOK_TIMEOUT)

    return await asyncio.gather(*map(ask, lives))


async def _report_of(runner: Runner, patience: float) -> RunnerReport | None:
    """What a loaded runner says of itself; None if it does not within `patience` seconds."""
    try:
        response = await RunnerServiceStub(runner.channel).GetRunner(
            GetRunnerRequest(), timeout=patience
        )
    except (grpc.aio.AioRpcError, grpc.aio.UsageError):
        return None
    return response.runner


def connect(address: str) -> grpc.aio.Channel:
    """The channel to a runner. What to do about a failed call is the relay's decision alone."""
    return grpc.aio.insecure_channel(address, options=runner_options(address))


def runner_options(address: str) -> list[tuple[str, Any]]:
    """The options of a channel to a runner."""
    return [
        # No keepalive: one that is stopped for less than its stall timeout is not lost, and who is
        # gone breaks the connection of a Unix socket by that alone.
        *(option for option in channel_options(address) if "keepalive" not in option[0]),
        ("grpc.enable_retries", 0),
        # 64 KiB of a stream are taken in advance and no more, as gRPC would where much has been
        # read: what a client does not read is to wait in its runner, which then stops.
        ("grpc.http2.bdp_probe", 0),
    ]
