"""Wires a runner together and lives its life: bind, report, load, serve, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import grpc
from opentelemetry import metrics

from headrace.errors import (
    HeadraceError,
    InvalidRequest,
    LoadFailed,
    ModelCorrupt,
    Unavailable,
    UnsupportedModel,
)
from headrace.host import machine as host
from headrace.host.handover import FailureCause, ReportWriter
from headrace.host.sockets import remove_stale
from headrace.rpc import loop
from headrace.rpc.health import NOT_SERVING, SERVING, HealthServicer
from headrace.rpc.options import server_options
from headrace.rpc.protection import Protection, ProtectionError
from headrace.rpc.reflection import enable_reflection
from headrace.rpc.service import server_interceptors
from headrace.telemetry import engine as engine_metrics
from headrace.telemetry import names
from headrace.telemetry.local import LocalSpanExporter
from headrace.telemetry.setup import configure
from headrace.v1 import runner_pb2_grpc
from headrace_runner.config import RunnerConfig
from headrace_runner.models import families
from headrace_runner.models.device import is_allocation_failure
from headrace_runner.models.encoders.layout import is_embedding
from headrace_runner.served import Served
from headrace_runner.services.runner import RunnerServicer
from headrace_runner.starting import Start
from headrace_runner.state import AnyRunner
from headrace_runner.watchdog import Watchdog

logger = logging.getLogger(__name__)
_meter = metrics.get_meter("headrace.runner")

Kind: TypeAlias = Literal["text", "image", "embedding"]
Maker: TypeAlias = Callable[[RunnerConfig, host.Machine, ReportWriter, Start], Served]

_SERVICE: Final = "headrace-runner"
_STUCK = 10.0
"""Seconds after which an engine that does not end its step is given up."""


def run(config: RunnerConfig, imports: tuple[int, int] | None = None) -> int:
    """Runs a runner until it is told to stop. Gives the exit status: 0 after a clean stop,
    1 after a failure, which has been reported.

    `imports`: when they began and ended, in nanoseconds since 1970; None where they were done
    before this runner was wanted.
    """
    report = ReportWriter(config.report_fd)
    telemetry = configure(
        _SERVICE,
        instance_id=config.id,
        log_format=config.log_format,
        level=config.log_level.upper(),
        fields={"model": config.name, "runner_id": config.id},
        # A controller has the runner's lines from its standard error, to the last one.
        export_logs=config.report_fd is None,
        local=LocalSpanExporter(_SERVICE, config.id, report.ended) if config.report_spans else None,
        resource={names.HEADRACE_MODEL_NAME: config.name},
    )
    try:
        return loop.run(_main(config, report, Start(imports)))
    finally:
        telemetry.shutdown()  # First: it may have spans left to report.
        report.close()


async def _main(config: RunnerConfig, report: ReportWriter, start: Start) -> int:
    stop = asyncio.Event()
    _stop_on_signals(stop)
    if config.parent is not None:
        await _stop_without_parent(stop)
    machine = host.describe()
    try:
        protection = _protection(config)
        server = grpc.aio.server(
            interceptors=server_interceptors(protection.access), options=server_options()
        )
        with start.part(names.SPAN_LOAD_PREPARE):
            served = _maker(kind_of(config))(config, machine, report, start)
            health = _add_services(server, served, machine)
            address = _bind(server, config.listen, protection)
    except Exception as error:  # noqa: BLE001 - whatever it is goes into the report
        return _give_up(report, error, start)
    await server.start()
    report.listening(address, config.digest)
    with start.lines():
        logger.info("listening", extra={"address": address})
    runner = served.runner
    loading = asyncio.create_task(_load(served, report, health, start))
    watching = asyncio.create_task(_watch_progress(runner, health))
    stopping = asyncio.create_task(stop.wait())
    failing = asyncio.ensure_future(runner.engine.failed)
    try:
        ends: set[asyncio.Future[Any]] = {stopping, failing}
        await asyncio.wait({loading, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done() and (failure := loading.exception()) is not None:
            return _give_up(report, failure, start)
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            return _break_down(report, failing.result())
        return await _drain(runner, stop)
    finally:
        for task in (loading, watching, stopping):
            task.cancel()
        runner.stopping.set()
        health.shutdown()
        await server.stop(grace=0.5)
        stopped = await runner.engine.stop(_STUCK)
        await asyncio.gather(loading, watching, stopping, return_exceptions=True)
        if not stopped:
            # The interpreter would wait for the thread for ever.
            logger.critical("the engine is stuck; the process ends without it")
            logging.shutdown()
            os._exit(1)


def kind_of(config: RunnerConfig) -> Kind:
    """What the model is for, as told or by its directory. Raises ModelCorrupt for damaged files."""
    if config.kind != "auto":
        return config.kind
    if families.find(config.model_dir) is not None:
        return "image"
    return "embedding" if is_embedding(config.model_dir) else "text"


def preload(config: RunnerConfig) -> None:
    """Imports what a model of this kind is served with. What is wrong with its files comes out
    later, where it is reported."""
    with contextlib.suppress(HeadraceError):
        _maker(kind_of(config))


def _maker(kind: Kind) -> Maker:
    # Here and not above: no kind is to pay for another's imports.
    if kind == "image":
        from headrace_runner import image_app

        return image_app.prepare
    if kind == "embedding":
        from headrace_runner import embedding_app

        return embedding_app.prepare
    from headrace_runner import text_app

    return text_app.prepare


class _Health:
    """The health of all that a runner serves, which is one."""

    def __init__(self, server: grpc.aio.Server, services: tuple[str, ...]) -> None:
        self._servicer = HealthServicer()
        self._services = ("", *services)
        self._servicer.add_to(server)
        self.set(NOT_SERVING)

    def set(self, status: Literal[0, 1, 2, 3]) -> None:
        for service in self._services:
            self._servicer.set(service, status)

    def shutdown(self) -> None:
        self._servicer.shutdown()


def _add_services(server: grpc.aio.Server, served: Served, machine: host.Machine) -> _Health:
    served.add_to(server)
    servicer = RunnerServicer(served.runner, machine)
    runner_pb2_grpc.add_RunnerServiceServicer_to_server(servicer, server)
    engine_metrics.observe(_meter, servicer.describe)
    services = (*served.services, "headrace.v1.RunnerService")
    enable_reflection(server, services)
    return _Health(server, services)


def _protection(config: RunnerConfig) -> Protection:
    """Raises InvalidRequest for files that cannot be used."""
    try:
        return Protection.read(config.tls_cert, config.tls_key, config.tls_client_ca, config.tokens)
    except ProtectionError as error:
        raise InvalidRequest(str(error)) from error


def _bind(server: grpc.aio.Server, listen: str, protection: Protection) -> str:
    """Binds the address; gives the one that was bound, with its port.

    Raises Unavailable when that cannot be done.
    """
    path = Path(listen.removeprefix("unix:")) if listen.startswith("unix:") else None
    try:
        if path is not None:
            remove_stale(path)
        port = protection.add_port(server, listen)
        if path is not None:
            return listen
    except (RuntimeError, OSError) as error:
        raise Unavailable(f"cannot listen on {listen}; give another address: {error}") from error
    return f"{listen.rpartition(':')[0]}:{port}"


async def _load(served: Served, report: ReportWriter, health: _Health, start: Start) -> None:
    runner = served.runner
    begin = time.monotonic()
    try:
        loaded = await runner.engine.start()
    except BaseException as error:
        start.end(error)
        if isinstance(error, Exception):  # Those who wait for the model are told.
            known = isinstance(error, HeadraceError)
            runner.loaded.set_exception(
                error
                if known
                else LoadFailed("The model could not be loaded.", cause="LOAD_FAILED")
            )
            runner.loaded.exception()  # Seen, even if nobody waits for it.
        raise
    start.end()
    runner.loaded.set_result(loaded)
    runner.serving_since = time.monotonic()
    if not runner.draining.is_set():
        health.set(SERVING)
    report.ready()
    with start.lines():
        logger.info(
            "serving",
            extra={
                "weights": loaded.weights,
                "weights_bytes": loaded.weights_bytes,
                "load_seconds": round(time.monotonic() - begin, 3),
                **served.facts,
            },
        )


async def _watch_progress(runner: AnyRunner, health: _Health) -> None:
    """Turns the health by progress: with work but no step for too long, it is NOT_SERVING.

    So it is when the runner takes nothing new.
    """
    await asyncio.wait({runner.loaded})
    limit = runner.config.stall_timeout
    watchdog = Watchdog(limit, time.monotonic())
    while not runner.draining.is_set():
        stalled = watchdog.is_stalled(runner.engine.stalled_for(), time.monotonic())
        if stalled != runner.stalled:
            runner.stalled = stalled
            health.set(NOT_SERVING if stalled else SERVING)
            logger.warning(f"no progress for {limit:.0f} s" if stalled else "progress again")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(watchdog.interval):
                await runner.draining.wait()
    health.set(NOT_SERVING)


async def _drain(runner: AnyRunner, stop: asyncio.Event) -> int:
    logger.info("draining")
    stop.clear()
    draining = asyncio.create_task(runner.drain(runner.config.grace))
    again = asyncio.create_task(stop.wait())
    await asyncio.wait({draining, again}, return_when=asyncio.FIRST_COMPLETED)
    if again.done():
        await runner.drain(0)  # Told twice: what runs is ended now.
    for task in (draining, again):
        task.cancel()
    await asyncio.gather(draining, again, return_exceptions=True)
    logger.info("stopped")
    return 0


def _give_up(report: ReportWriter, error: BaseException, start: Start) -> int:
    start.end(error)
    cause: FailureCause = "LOAD_FAILED"
    file = None
    if isinstance(error, ModelCorrupt):
        cause, file = "MODEL_CORRUPT", error.metadata.get("file")
    elif isinstance(error, UnsupportedModel):
        cause = "UNSUPPORTED_MODEL"
    elif is_allocation_failure(error):
        cause = "OUT_OF_MEMORY"
    known = isinstance(error, HeadraceError)
    with start.lines():
        logger.error("the runner failed: %s", error, exc_info=None if known else error)
    report.failed(cause, str(error) or type(error).__name__, file)
    return 1


def _break_down(report: ReportWriter, error: BaseException) -> int:
    """Reports an engine that failed while it served. What it raised is for the log alone."""
    logger.error("the engine failed: %s", error, exc_info=error)
    if is_allocation_failure(error):
        report.failed("OUT_OF_MEMORY", "the runner ran out of memory")
    return 1


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def _stop_without_parent(stop: asyncio.Event) -> None:
    """Stops when stdin ends: whoever started this process has gone."""

    class Stdin(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            stop.set()

        def eof_received(self) -> None:
            stop.set()

    await asyncio.get_running_loop().connect_read_pipe(Stdin, sys.stdin)
