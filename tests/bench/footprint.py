"""What the bare SDK costs to import, and what an idle controller costs to keep."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import psutil

from headrace import AsyncClient
from tests.bench.servers import controller
from tests.bench.setting import Setting
from tests.bench.stats import spread

_IMPORTS = ("import headrace", "from headrace import Client, AsyncClient")
_TIMED = "from time import perf_counter as t\nb = t()\n{}\nprint(t() - b)"
_LOADED = {True: "yes", False: "no", None: "not known on this system"}
_IMPORT_SECONDS = 60.0
_IDLE_SAMPLES = 10
_IDLE_SECONDS = 0.3


async def measure(setting: Setting, times: int) -> list[tuple[str, str]]:
    """Names and values, for people. Raises BenchError."""
    rows = []
    for statement in _IMPORTS:
        found = spread([await asyncio.to_thread(_import, statement) for _ in range(times)])
        assert found
        rows.append((statement, f"{found.median:.3f} s ({found.low:.3f}–{found.high:.3f})"))
    resident, has_mlx = await _idle_controller(setting)
    rows.append(("idle controller, resident", f"{resident / 1e6:.1f} MB"))
    rows.append(("idle controller has MLX loaded", _LOADED[has_mlx]))
    return rows


def _import(statement: str) -> float:
    done = subprocess.run(
        (sys.executable, "-c", _TIMED.format(statement)),
        capture_output=True,
        check=True,
        timeout=_IMPORT_SECONDS,
    )
    return float(done.stdout)


async def _idle_controller(setting: Setting) -> tuple[int, bool | None]:
    """Bytes, the most within some seconds after a first call, and whether MLX is in the process.

    None where the system does not show what a process has loaded.
    """
    async with controller(setting) as (child, address), AsyncClient(address) as client:
        await client.list_models()
        process = psutil.Process(child.pid)
        resident = 0
        for _ in range(_IDLE_SAMPLES):
            resident = max(resident, process.memory_info().rss)
            await asyncio.sleep(_IDLE_SECONDS)
        if not hasattr(process, "memory_maps"):
            return resident, None
        return resident, any("libmlx" in Path(one.path).name for one in process.memory_maps())
