"""Locks between processes that share a store: flock on a file, free when its holder dies."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock at `path`, waiting for it: for moments only, since it blocks the thread."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Take the lock at `path` if it is free: a descriptor whose closing frees it, else None."""
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@asynccontextmanager
async def held(path: Path) -> AsyncIterator[None]:
    """Hold the lock at `path`, waiting for as long as another process needs; cancellable."""
    descriptor = try_lock(path)
    if descriptor is None:
        descriptor = await _wait(path)
    try:
        yield
    finally:
        os.close(descriptor)


async def _wait(path: Path) -> int:
    """flock cannot be interrupted, so a thread of its own waits: one that neither a cancelled
    caller nor the end of the process has to wait for, and that gives up what it got too late."""
    loop = asyncio.get_running_loop()
    granted: asyncio.Future[int] = loop.create_future()

    def hand_over(descriptor: int) -> None:
        if granted.cancelled():
            os.close(descriptor)
        else:
            granted.set_result(descriptor)

    def wait() -> None:
        descriptor = _open(path)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            loop.call_soon_threadsafe(hand_over, descriptor)
        except RuntimeError:  # The loop is closed: nobody waits any more.
            os.close(descriptor)

    threading.Thread(target=wait, name=f"lock {path.name}", daemon=True).start()
    try:
        return await granted
    except asyncio.CancelledError:
        if granted.done() and not granted.cancelled():  # Granted in the very moment of the cancel.
            os.close(granted.result())
        raise


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
