"""Blocking work beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from headrace_server.store.progress import OnProgress, Progress

P = ParamSpec("P")
R = TypeVar("R")


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a blocking function; a cancelled caller leaves only once the thread has."""
    task = asyncio.create_task(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def in_thread_until_cancelled(function: Callable[[threading.Event], R]) -> R:
    """Run a blocking function that returns early once its event is set: a cancelled caller sets it,
    and leaves once the thread has."""
    stop = threading.Event()
    task = asyncio.create_task(asyncio.to_thread(function, stop))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([task])
        raise


def progress_from_thread(on_progress: OnProgress) -> OnProgress:
    """`on_progress` for a thread to call: it is called on the loop of whoever asks for it."""
    loop = asyncio.get_running_loop()

    def tell(progress: Progress) -> None:
        loop.call_soon_threadsafe(on_progress, progress)

    return tell
