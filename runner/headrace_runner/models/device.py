"""What the device that MLX computes on has room for."""

from __future__ import annotations

from collections.abc import Callable, Collection

import mlx.core as mx

from headrace.host import machine

_ALLOCATION_SIGNS = (
    "bad_alloc",
    "[malloc",
    "malloc]",
    "Unable to allocate",
    "out of memory",
    "OutOfMemory",
    "Insufficient Memory",
)
"""What MLX's back ends say; in the build for a Linux CPU it does not notice."""


def on_cpu() -> bool:
    """Whether a CPU is device and host in one."""
    return mx.default_device().type == mx.DeviceType.cpu


def read_weights(arrays: Collection[mx.array], on_progress: Callable[[float], None]) -> int:
    """Reads arrays into memory, one by one; gives their bytes.

    `on_progress` gets the fraction that is done, some fifty times, and may raise.
    """
    total = sum(array.nbytes for array in arrays) or 1
    done = reported = 0
    for array in arrays:
        mx.eval(array)
        done += array.nbytes
        if done - reported >= total / 50 or done == total:
            reported = done
            on_progress(done / total)
    mx.clear_cache()
    return done


def claim_memory() -> int:
    """Bytes that are free for everything beside the weights that have just been loaded.

    On a GPU it also bounds what is kept wired, and what is kept for reuse.
    """
    if on_cpu():
        return machine.memory_available()
    limit = int(mx.device_info().get("max_recommended_working_set_size", 0))
    if mx.metal.is_available() and limit:
        # What is wired is never paged out or compressed while the device does not use it.
        mx.set_wired_limit(limit)
    left = (limit or machine.memory_available()) - mx.get_active_memory()
    # Freed buffers are kept for reuse up to this, and given back beyond it.
    mx.set_cache_limit(max(left // 10, 1 << 28))
    return max(left, 0)


def memory_available() -> int:
    """Bytes that may be taken now, what MLX keeps for reuse included."""
    reusable = mx.get_cache_memory()
    if on_cpu():
        return machine.memory_available() + reusable
    limit = int(mx.device_info().get("max_recommended_working_set_size", 0))
    if not limit:
        return machine.memory_available() + reusable
    return max(limit - mx.get_active_memory(), 0)


def is_allocation_failure(error: BaseException) -> bool:
    """Whether memory has run out; MLX says so by a RuntimeError of its own words."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(sign in text for sign in _ALLOCATION_SIGNS)
