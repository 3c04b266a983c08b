"""Whether a runner keeps the stored weights, computes with them as they are, or widens them to
float32. Pure: it probes nothing."""

from __future__ import annotations

from typing import Literal

from headrace.host.machine import Device

Dtype = Literal["float32", "int8", "stored"]

_BYTES_PER_FLOAT32 = 4
_MAX_PARAMETERS = 8_000_000_000
_MEMORY_SHARE = 0.5


def choose_dtype(
    device: Device,
    parameters: int,
    stored_bytes: int,
    available_bytes: int,
    has_blas: bool,
    by_kernels: bool = False,
) -> Dtype:
    """The fastest that fits.

    `by_kernels`: the model is quantised so that headrace-kernels can compute with it as it is
    stored, and they are there. Nothing on a CPU is faster, nor smaller.

    MLX's own quantised and 16-bit matrix products on a CPU bypass the BLAS; float32 ones through a
    fast BLAS run 8 to 20 times quicker, at 4 bytes a parameter. So float32 is for CPUs with such a
    library, models up to 8e9 parameters, and weights that take at most half of the available
    memory.

    `parameters` 0 means unknown, which keeps the stored weights, as do weights that are 32 bits
    wide already.
    """
    if device == "cpu" and by_kernels:
        return "int8"
    wide_bytes = parameters * _BYTES_PER_FLOAT32
    if device != "cpu" or not has_blas or not 0 < parameters <= _MAX_PARAMETERS:
        return "stored"
    if stored_bytes >= wide_bytes or wide_bytes > available_bytes * _MEMORY_SHARE:
        return "stored"
    return "float32"
