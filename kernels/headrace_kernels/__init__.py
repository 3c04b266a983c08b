"""Quantised products for MLX on a CPU, by 8-bit integers.

`layout_of` and `pack` take a matrix in MLX's affine quantisation, or several; `multiply`,
`gather_multiply` and `take` compute with it. All functions of arrays are lazy, as MLX's own are.
What they compute is the same to the bit by any path (the instructions that are used), with any
number of threads, whatever rows are computed together.

The environment variable HEADRACE_KERNELS names the path to use instead of the fastest. Importing
this raises ImportError where it cannot work: with another version of MLX, or a path that is not
there.
"""

from __future__ import annotations

import os
from importlib.metadata import version

MLX_VERSION = "0.32.4"
"""The release of MLX that this is built for; its C++ interface differs from one to the next."""

if (_mlx_version := version("mlx")) != MLX_VERSION:
    raise ImportError(f"headrace_kernels is built for mlx {MLX_VERSION}; this is {_mlx_version}")

from headrace_kernels._ext import (  # noqa: E402 (the version is checked first)
    Layout,
    attend,
    gather_multiply,
    gelu,
    layout_of,
    multiply,
    pack,
    path,
    paths,
    rms_norm,
    rotate,
    round_heads,
    set_threads,
    swiglu,
    take,
    threads,
    use,
    weigh,
)

__all__ = [
    "MLX_VERSION",
    "Layout",
    "attend",
    "gather_multiply",
    "gelu",
    "layout_of",
    "multiply",
    "pack",
    "path",
    "paths",
    "rms_norm",
    "rotate",
    "round_heads",
    "set_threads",
    "swiglu",
    "take",
    "threads",
    "use",
    "weigh",
]

if _wanted := os.environ.get("HEADRACE_KERNELS"):
    try:
        use(_wanted)
    except ValueError as error:
        raise ImportError(f"HEADRACE_KERNELS: {error}") from None
