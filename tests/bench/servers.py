"""The servers that the bench talks to: each started, and a stream to it, until it is stopped.

To add a peer, write its start as a function like the others and name it in `contenders`.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from headrace import AsyncClient
from tests.bench.children import BenchError, Child, explain, running
from tests.bench.setting import MODEL, Setting
from tests.bench.streams import Stream, grpc_stream, sse_stream

_STDOUT = "1"
"""Where children report that they are ready; they log elsewhere."""

OURS = "whole path"
EXACT = "whole path, float32"
LLAMA = "llama.cpp's server"
RowT = TypeVar("RowT")

Server = Callable[[Setting], AbstractAsyncContextManager[Stream]]
"""Starts a server; gives what sends it a prompt. Raises BenchError."""


@asynccontextmanager
async def runner_process(setting: Setting, *options: str) -> AsyncIterator[str]:
    """A runner without a controller, ready: its address."""
    address = f"unix:{setting.sockets}/runner.sock"
    command = (sys.executable, "-m", "headrace_runner", "--model", setting.stored, "--name", MODEL)
    more = ("--listen", address, "--dtype", "float32", *options)
    life = ("--report-fd", _STDOUT, "--parent", "stdin", "--grace", "1")
    async with running((*command, *more, *life), setting.tuned, b'{"event": "ready"}') as child:
        await child.ready()
        yield address


@asynccontextmanager
async def runner(setting: Setting) -> AsyncIterator[Stream]:
    """The runner alone, with room for the greatest number of streams and weights as it sees fit."""
    async with (
        runner_process(setting, "--dtype", "auto", "--max-concurrency", "32") as address,
        AsyncClient(address) as client,
    ):
        yield partial(grpc_stream, client, MODEL)


class Place(Protocol):
    """What a controller needs of a setting."""

    @property
    def home(self) -> Path: ...
    @property
    def sockets(self) -> Path: ...


@asynccontextmanager
async def controller(
    setting: Place, *options: str, program: str = "headrace_server"
) -> AsyncIterator[tuple[Child, str]]:
    """A controller as users start it, ready, and its address."""
    address = f"unix:{setting.sockets}/controller.sock"
    command = (sys.executable, "-m", program, "--listen", address, "--grace", "1s")
    life = ("--home", setting.home, "--ready-fd", _STDOUT, "--parent", "stdin")
    async with running((*command, *life, *options), os.environ, b'{"event": "listening"') as child:
        await child.ready()
        yield child, address


@asynccontextmanager
async def path(setting: Setting, *options: str) -> AsyncIterator[Stream]:
    """The whole path: controller and runner, with weights as they see fit."""
    async with controller(setting, *options) as (_, address), AsyncClient(address) as client:
        yield partial(grpc_stream, client, MODEL)


def exact(setting: Setting) -> AbstractAsyncContextManager[Stream]:
    """The same with float32 weights."""
    return path(setting, "--dtype", "float32")


def tuned(setting: Setting) -> AbstractAsyncContextManager[Stream]:
    """`mlx_lm.server` with the float32 weights and the BLAS that Headrace uses."""
    return _mlx_lm(setting.float32, setting.tuned)


def stock(setting: Setting) -> AbstractAsyncContextManager[Stream]:
    """`mlx_lm.server` as users get it."""
    return _mlx_lm(setting.quantized, setting.stock)


@asynccontextmanager
async def _mlx_lm(model: Path, environment: Mapping[str, str]) -> AsyncIterator[Stream]:
    port = _free_port()
    command = (sys.executable, "-m", "mlx_lm", "server", "--model", model, "--port", str(port))
    async with running(command, environment, b"Starting httpd") as child:
        await child.ready()
        yield partial(sse_stream, port, {})


@asynccontextmanager
async def llama(setting: Setting, slots: int, context: int) -> AsyncIterator[Stream]:
    """llama.cpp's server with places for so many streams, each of up to `context` tokens."""
    if setting.llama is None:
        raise BenchError("llama.cpp's server is not installed: `make bench-peers` builds it")
    port = _free_port()
    command = (setting.llama.server, "--model", setting.llama.model, "--port", str(port))
    cores = str(setting.machine.cpus)
    options = ("-t", cores, "-np", str(slots), "-c", str(slots * context), "--no-ui")
    async with running((*command, *options), os.environ, b"listening on") as child:
        await child.ready()
        yield partial(sse_stream, port, {"ignore_eos": True})


def compared(skip: Sequence[str], slots: int, context: int) -> list[tuple[str, Server]]:
    """Title and start of the whole path and the peers whose names are not to be skipped.

    llama.cpp's has `slots` streams of up to `context` tokens each; the others need not be told.
    """
    known: dict[str, tuple[str, Server]] = {
        "path": (OURS, path),
        "exact": (EXACT, exact),
        "tuned": ("mlx_lm.server, tuned", tuned),
        "llama": (LLAMA, partial(llama, slots=slots, context=context)),
    }
    return [one for name, one in known.items() if name not in skip]


async def with_each(
    setting: Setting,
    chosen: Sequence[tuple[str, Server]],
    measure: Callable[[str, Stream], Awaitable[RowT]],
    note: Callable[[str], None],
) -> tuple[list[RowT], list[str]]:
    """What `measure` gives for each title and server in turn, and what failed."""
    rows, failures = [], []
    for title, server in chosen:
        note(title)
        try:
            async with server(setting) as stream:
                rows.append(await measure(title, stream))
        except Exception as error:  # noqa: BLE001 (any server may fail in any way)
            failures.append(f"{title}: {explain(error)}")
    return rows, failures


def _free_port() -> int:
    # Not every server says which port it took, so that it cannot be left to choose one.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
