"""What processes hold while they have nothing to do, and what they leave behind."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.controller import TASKS
from tests.e2e.harness import Controller, alive

_LOOK = 0.02
"""Seconds between two looks for a line of which nothing tells."""
_SETTLE = 45.0
"""Seconds for the last traces of what has ended."""
_POOLED = "event_engine"
"""The name of the threads in gRPC's pool: it has more of them when work waits, and fewer only once
one has had none for 20 s, which may never be."""
_MEMORY_GROWTH = 48 << 20
"""Bytes by which a process may be larger at the end: what the allocator keeps of the busiest
moments does not grow with the kills."""


@dataclass(frozen=True)
class Footprint:
    """What an idle process holds."""

    memory: int
    """Resident bytes."""
    files: int
    """Open files, sockets and pipes."""
    threads: int
    """But for a controller's that are in a pool, gRPC's or asyncio's: both grow with the work that
    waits, and not with the runners there have been."""
    tasks: tuple[str, ...] = ()
    """Names of a controller's asyncio tasks."""
    processes: int = 1
    """Itself, and all that was started by it."""
    sockets: int = 0
    """Entries in the folder of its sockets."""

    def excess(self, before: Footprint) -> list[str]:
        """What there is more of than before."""
        found = []
        for name in ("files", "threads", "processes", "sockets"):
            now, then = getattr(self, name), getattr(before, name)
            if now > then:
                found.append(f"{now} {name} instead of {then}")
        if len(self.tasks) > len(before.tasks):
            found.append(f"tasks {self.tasks} instead of {before.tasks}")
        if self.memory > before.memory + _MEMORY_GROWTH:
            found.append(f"{self.memory} bytes of memory instead of {before.memory}")
        return found


def of_process(pid: int) -> Footprint:
    """Of any process."""
    process = psutil.Process(pid)
    with process.oneshot():
        return Footprint(process.memory_info().rss, process.num_fds(), process.num_threads())


async def of_controller(controller: Controller) -> Footprint:
    """Of one that was started as `tests.chaos.controller`."""
    process = of_process(controller.pid)
    seen = len(_told(controller))
    controller.send(signal.SIGUSR1)
    while len(told := _told(controller)) == seen:  # noqa: ASYNC110 - it is a file
        await asyncio.sleep(_LOOK)
    return Footprint(
        process.memory,
        process.files,
        process.threads - told[-1]["waiting"] - _pooled(controller.pid),
        tasks=tuple(told[-1]["names"]),
        processes=len(controller.processes()),
        sockets=sum(1 for _ in controller.sockets.iterdir()),
    )


def _pooled(pid: int) -> int:
    """Threads of gRPC's pool, where the system tells their names."""
    found = 0
    for name in Path("/proc", str(pid), "task").glob("*/comm"):
        with suppress(OSError):  # It has ended since.
            found += name.read_text().strip() == _POOLED
    return found


def _told(controller: Controller) -> list[dict[str, Any]]:
    return [line for line in controller.log() if line["message"] == TASKS]


async def settled(look: Callable[[], Awaitable[Footprint]], before: Footprint) -> Footprint:
    """What is held once it is no more than before, or at last."""
    deadline = time.monotonic() + _SETTLE
    while True:
        now = await look()
        if not now.excess(before) or time.monotonic() > deadline:
            return now
        await asyncio.sleep(0.5)


async def end(controller: Controller) -> list[str]:
    """Ends a controller; gives what it leaves behind."""
    runners = controller.runners()
    controller.send(signal.SIGTERM)
    status = await asyncio.to_thread(controller.wait)
    left = [f"exit status {status}"] if status else []
    left += [f"process {process.pid}" for process in controller.processes() if alive(process)]
    left += [f"runner {process.pid}" for process in runners if alive(process)]
    left += [f"socket {path.name}" for path in controller.sockets.iterdir()]
    return left
