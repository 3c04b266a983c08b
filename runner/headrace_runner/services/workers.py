"""Worker threads for requests whose handling would hold up the event loop.

Small requests share asyncio's own threads. Large ones go one at a time, on a thread of their own:
tokenizing 16 MiB takes seconds and gigabytes, and several at once could take all the memory, or
all the threads that small requests need. Image files are read one at a time for the same reason,
and written one at a time since the cores are the engine's. What an image takes is looked up one at
a time, so that requests stay in their order. Never used for MLX.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

from google.protobuf.message import Message

P = ParamSpec("P")
R = TypeVar("R")

LARGE_BYTES = 1024 * 1024
"""Size of an encoded request from which it waits for other large ones."""

_large = ThreadPoolExecutor(max_workers=1, thread_name_prefix="large-request")
_reading = ThreadPoolExecutor(max_workers=1, thread_name_prefix="image-reading")
_sizing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="image-sizing")
_writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="image-writing")


async def in_worker(request: Message, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `work` for a request in a worker thread, with the caller's context variables.

    A cancelled caller leaves at once, and work that has not begun is dropped.
    """
    if request.ByteSize() < LARGE_BYTES:
        return await asyncio.to_thread(work, *args, **kwargs)
    return await _run(_large, work, *args, **kwargs)


async def reading_images(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `work`, which may read image files, as `in_worker` runs a large request's."""
    return await _run(_reading, work, *args, **kwargs)


async def sizing_images(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `work`, which looks up what images take, as `in_worker` runs a large request's."""
    return await _run(_sizing, work, *args, **kwargs)


async def writing_images(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `work`, which writes an image file, as `in_worker` runs a large request's."""
    return await _run(_writing, work, *args, **kwargs)


async def _run(
    pool: ThreadPoolExecutor, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> R:
    running = pool.submit(copy_context().run, partial(work, *args, **kwargs))
    return await asyncio.wrap_future(running)
