"""The BLAS that runners compute with, for the tests' own process as well.

MLX's wheel for Linux brings the reference BLAS, which takes some 30 times as long for a product of
matrices. The launcher preloads a fast one into runners. Here it is opened for all to see before
MLX is: what is loaded later finds its functions first. So no child process inherits anything.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from headrace.host.blas import find_blas

_THREADS = "OPENBLAS_NUM_THREADS"


def open_blas(home: Path) -> None:
    """Opens it, if there is one. One thread: several would wait for each other's core."""
    blas = find_blas(None, home)
    if blas is None or blas.library_path:
        return
    before = os.environ.get(_THREADS)
    os.environ[_THREADS] = before or "1"  # It reads this when it is loaded, and never again.
    try:
        ctypes.CDLL(str(blas.path), mode=os.RTLD_GLOBAL | os.RTLD_NOW)
    finally:
        if before is None:
            del os.environ[_THREADS]
