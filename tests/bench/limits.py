"""How near the kernels come to what the machine can do: `python -m tests.bench.limits`.

All products of SmolLM2's layers, as one step of decoding makes them, beside two limits: how fast
memory is read (memchr over zeros), and how fast bytes are multiplied in registers (limits.cpp, by
g++). With few rows the first one binds, with many the second.
"""

from __future__ import annotations

import asyncio
import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil

from headrace_runner.models import cpu
from headrace_runner.models.load import load
from headrace_server.store import Store
from tests.bench.setting import MODEL, home

ROWS = (1, 8, 32, 512)
_SECONDS = 2.0
"""For each figure."""
_READ = 1 << 29
"""Bytes, for each thread: more than any cache holds."""
_SOURCE = Path(__file__).with_suffix(".cpp")


def memory_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read."""
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes, memchr.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), None
    buffers = [ctypes.create_string_buffer(_READ) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def read() -> None:
            list(pool.map(lambda one: memchr(ctypes.addressof(one), 1, _READ), buffers))

        return threads * _READ / _least_time(read)


def byte_products(threads: int) -> float:
    """Multiplications and additions of bytes a second that so many cores make."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "limits")
        subprocess.run(["g++", "-O3", "-march=native", _SOURCE, "-o", program], check=True)
        command: list[str | Path] = [program, str(_SECONDS)]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(threads)]
        return sum(float(one.communicate()[0]) for one in running) * 1e9


def products(model: Any, rows: int) -> tuple[float, int, int]:
    """Seconds that all products of one step take, the bytes of weights that they read, and their
    multiplications and additions."""
    calls: list[Callable[[], mx.array]] = []
    read = work = 0
    for layer in model.modules():
        if not isinstance(layer, cpu.PackedLinear | cpu.PackedEmbedding):
            continue
        inputs, outputs = layer.sizes
        x = mx.random.normal((rows, inputs))
        mx.eval(x)
        multiply = layer if isinstance(layer, cpu.PackedLinear) else layer.as_linear
        calls.append(lambda multiply=multiply, x=x: multiply(x))  # type: ignore[misc]
        read += layer.packed.nbytes
        work += 2 * rows * inputs * outputs
    return _least_time(lambda: mx.eval([call() for call in calls])), read, work


def _least_time(act: Callable[[], object]) -> float:
    """Of several runs: what else goes on makes some of them longer, and none shorter."""
    least, until = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        began = time.perf_counter()
        act()
        least = min(least, time.perf_counter() - began)
    return least


def main() -> int:
    """Prints a table in Markdown."""
    cores = len(psutil.Process().cpu_affinity())
    bandwidth, peak = memory_bandwidth(cores), byte_products(cores)
    store = Store(home())
    directory = store.path(asyncio.run(store.pull(MODEL)))
    model = load(directory, "int8", lambda _: None).model
    print(f"{cores} cores read {bandwidth / 1e9:.1f} GB/s and make {peak / 1e9:.0f} GOP/s.\n")
    print("| rows | ms | GB/s | of memory's | GOP/s | of the cores' |\n|---|---|---|---|---|---|")
    for rows in ROWS:
        seconds, read, work = products(model, rows)
        ways = (read / seconds, bandwidth), (work / seconds, peak)
        cells = [f"{rate / 1e9:.1f} | {rate / limit:.0%}" for rate, limit in ways]
        print(f"| {rows} | {seconds * 1e3:.1f} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
