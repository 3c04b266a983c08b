"""Serves RunnerService: who this runner is and how it does."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import AsyncIterator
from importlib import metadata
from typing import Any, TypeAlias

import grpc
import psutil
from google.protobuf.duration_pb2 import Duration

from headrace.errors import Cancelled
from headrace.host.machine import Machine
from headrace.v1.runner_pb2 import (
    AbortRequest,
    AbortResponse,
    Device,
    Distribution,
    DrainRequest,
    DrainResponse,
    GetRunnerRequest,
    GetRunnerResponse,
    Runner,
    RunnerLoad,
    RunnerMemory,
    WatchRunnerRequest,
    WatchRunnerResponse,
)
from headrace.v1.runner_pb2_grpc import RunnerServiceServicer
from headrace_runner.engine import tally
from headrace_runner.state import AnyRunner

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_WATCH_INTERVAL = 0.1
"""Seconds between two looks for a change."""


class RunnerServicer(RunnerServiceServicer):
    """One runner."""

    def __init__(self, runner: AnyRunner, machine: Machine) -> None:
        self._runner = runner
        self._device = _device(machine)
        self._process = psutil.Process()
        self._version = metadata.version("headrace")

    async def GetRunner(self, request: GetRunnerRequest, context: Context) -> GetRunnerResponse:
        """Says how the runner does now."""
        return GetRunnerResponse(runner=self.describe())

    async def WatchRunner(
        self, request: WatchRunnerRequest, context: Context
    ) -> AsyncIterator[WatchRunnerResponse]:
        """Sends the runner's state now and at every change."""
        last = None
        while not self._runner.stopping.is_set():
            now = self.describe()
            # These change all the time and are no change of state.
            now.ClearField("uptime")
            now.memory.ClearField("resident_bytes")
            if now != last:
                last = now
                yield WatchRunnerResponse(runner=self.describe())
            try:
                async with asyncio.timeout(_WATCH_INTERVAL):
                    await self._runner.stopping.wait()
            except TimeoutError:
                continue

    async def Drain(self, request: DrainRequest, context: Context) -> DrainResponse:
        """Takes no new requests and answers when the last one has ended."""
        grace = self._runner.config.grace
        if request.HasField("grace"):
            # By hand: a timedelta refuses what is out of its range.
            grace = request.grace.seconds + request.grace.nanos / 1e9
        return DrainResponse(aborted=await self._runner.drain(grace))

    async def Abort(self, request: AbortRequest, context: Context) -> AbortResponse:
        """Ends one request."""
        error = Cancelled("The request was aborted.")
        return AbortResponse(found=self._runner.abort(request.request_id, error))

    def describe(self) -> Runner:
        """How the runner does now; from any thread."""
        runner = self._runner
        config, engine = runner.config, runner.engine
        stats = engine.stats
        uptime = Duration()
        uptime.FromNanoseconds(int(runner.uptime * 1e9))
        return Runner(
            id=config.id,
            version=self._version,
            model=config.name,
            digest=config.digest,
            kind=runner.kind,
            state=runner.state,
            devices=[self._device],
            memory=RunnerMemory(
                weights_bytes=stats.weights_bytes,
                kv_bytes=stats.kv_bytes,
                active_bytes=stats.active_bytes,
                peak_bytes=stats.peak_bytes,
                cache_bytes=stats.cache_bytes,
                resident_bytes=self._process.memory_info().rss,
                kv_reserved_bytes=stats.kv_reserved_bytes,
                kv_limit_bytes=stats.kv_limit_bytes,
                prefix_cache_bytes=stats.prefix_bytes,
                adapters_bytes=stats.adapters_bytes,
            ),
            load=RunnerLoad(
                running=engine.running,
                waiting=engine.waiting,
                requests_total=engine.requests_total,
                prompt_tokens_total=stats.prompt_tokens,
                output_tokens_total=stats.output_tokens,
                cached_tokens_total=stats.cached_tokens,
                prompts_total=stats.prompts,
                cached_prompts_total=stats.cached_prompts,
                step_seconds=_distribution(stats.step_seconds),
                step_rows=_distribution(stats.step_rows),
            ),
            limits=runner.limits,
            pid=os.getpid(),
            uptime=uptime,
            weights="" if runner.loaded_model is None else runner.loaded_model.weights,
        )


def _distribution(read: tally.Distribution) -> Distribution:
    return Distribution(bounds=read.bounds, counts=read.counts, sum=read.sum)


def _device(machine: Machine) -> Device:
    cpu = machine.device == "cpu"
    return Device(
        kind=machine.device,
        name=platform.processor() or machine.arch,
        cores=machine.cpus if cpu else None,
        memory_bytes=machine.memory_total,
        # The first library to be preloaded is the one that answers for BLAS.
        blas=os.environ.get("LD_PRELOAD", "").partition(":")[0] if cpu else "",
    )
