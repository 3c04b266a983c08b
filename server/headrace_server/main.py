"""The controller as a process: settings, signals, and the way from the start to the end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from headrace._target import is_local
from headrace.host.batch import run_as_batch
from headrace.rpc.loop import run
from headrace.rpc.protection import Protection, ProtectionError
from headrace_server.app import App, end
from headrace_server.config import ConfigError, Effective, Sources, as_toml, read
from headrace_server.files import allow_connections
from headrace_server.listening import CannotListenError
from headrace_server.runners.supervisor import OnSpan
from headrace_server.signals import Stop
from headrace_server.telemetry import telemetry

logger = logging.getLogger(__name__)

_MISTAKE = 2
"""The exit status for settings that cannot be used, as of argparse."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a controller until it is told to stop. Gives the exit status: 0 after a clean stop, 1
    where it cannot listen, 2 for settings with mistakes, files that they name included."""
    sources = Sources(argv)
    effective = read(sources)
    config = effective.config
    try:
        protection = Protection.read(
            config.tls_cert, config.tls_key, config.tls_client_ca, config.tokens
        )
    except ProtectionError as error:
        sys.stderr.write(f"headrace serve: error: {error}\n")
        return _MISTAKE
    if sources.check:
        for warning in effective.warnings:
            sys.stderr.write(f"headrace serve: {warning}\n")
        sys.stdout.write(as_toml(effective))
        return 0
    run_as_batch()  # before there are threads
    with telemetry(config) as on_span:
        try:
            return run(_run(sources, effective, protection, on_span))
        except CannotListenError as error:
            logger.error("%s", error)  # noqa: TRY400  # the user's to mend: no traceback
            return 1


async def _run(
    sources: Sources, effective: Effective, protection: Protection, on_span: OnSpan | None
) -> int:
    config = effective.config
    stop = Stop(can_hand_over=config.takeover)
    if config.parent is not None:
        await stop.with_stdin()
    for warning in effective.warnings:
        logger.warning("%s", warning)
    if config.tokens is None and config.tls_client_ca is None and not is_local(config.listen):
        logger.warning("everybody who can reach %s may use it; see --tokens", config.listen)
    allow_connections(config.max_connections)
    app = App(config, on_span, protection)
    stop.let_go = app.let_go
    reloading = asyncio.create_task(reread(stop.reread, sources, app), name="reloading")
    try:
        address = await _start(app, stop)
        if address is None:
            return 0
        _report_ready(config.ready_fd, address)
        await stop.wanted.wait()
        if stop.has_successor:
            await app.hand_over()
        stop.wanted.clear()
        await app.drain(stop.wanted)
    finally:
        await end([reloading])
        await app.close()
    return 0


async def _start(app: App, stop: Stop) -> str | None:
    """The address that is listened on; None if this is called off before: nothing is taken over."""
    starting = asyncio.create_task(app.start())
    called_off = asyncio.create_task(stop.wanted.wait())
    await asyncio.wait({starting, called_off}, return_when=asyncio.FIRST_COMPLETED)
    called_off.cancel()
    if starting.done():
        return starting.result()
    await end([starting])
    return None


async def reread(wanted: asyncio.Event, sources: Sources, app: App) -> None:
    """Read the configuration again each time that it is wanted. A broken one changes nothing."""
    while True:
        await wanted.wait()
        wanted.clear()
        try:
            effective = await asyncio.to_thread(sources.read)
            for warning in effective.warnings:
                logger.warning("%s", warning)
            await app.reconfigure(effective.config)
        except ConfigError as error:
            for problem in error.problems:
                logger.error("configuration not taken: %s", problem)  # noqa: TRY400  # the user's
        except Exception:  # a bug; the next wish is heard all the same
            logger.exception("the configuration was not taken over whole")


def _report_ready(fd: int | None, address: str) -> None:
    if fd is not None:
        with suppress(BrokenPipeError):
            os.write(fd, json.dumps({"event": "listening", "address": address}).encode() + b"\n")
        os.close(fd)
