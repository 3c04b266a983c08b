"""Memory of the process, whatever is computed in it."""

from __future__ import annotations

import ctypes
from typing import TypedDict

import mlx.core as mx


class InUse(TypedDict):
    """Bytes that MLX has, as an engine's stats have them."""

    active_bytes: int
    peak_bytes: int
    cache_bytes: int


def in_use() -> InUse:
    """Bytes that MLX has now."""
    return {
        "active_bytes": mx.get_active_memory(),
        "peak_bytes": mx.get_peak_memory(),
        "cache_bytes": mx.get_cache_memory(),
    }


def give_back() -> None:
    """Gives memory that nothing uses back to the system, for other models and programs.

    The C library of Linux keeps what is freed between pieces that are in use, more with time.
    """
    mx.clear_cache()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
