"""Is the C++ compiler there that MLX calls when it compiles a graph for the CPU?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping


def has_cxx(environ: Mapping[str, str] = os.environ) -> bool:
    """True when `g++`, the one name MLX runs, is on the PATH of `environ`.

    Presence is enough: MLX itself falls back when `g++ --version` fails.
    """
    return shutil.which("g++", path=environ.get("PATH")) is not None
