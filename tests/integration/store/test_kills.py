"""Changes of a store that are killed: nothing is lost or half visible, and the next one goes on."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import pytest

from headrace_server.store import Store, Verified
from tests.integration.store.operations import GGUF, OPERATIONS, fill
from tests.lengths import length
from tests.stores import assert_whole, copy_store

KILLED = ("import", "remove", "collect", "verify", "copy", "replace")
PATIENCE = 60
ROOT = Path(__file__).parents[3]
NAMES = {"one:latest", "adapted:latest", "other:latest"}


def started(home: Path, *operation: str) -> subprocess.Popen[bytes]:
    """A process that is about to change the store."""
    program = (sys.executable, "-m", "tests.integration.store.operations", str(home), *operation)
    process = subprocess.Popen(program, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def is_done(process: subprocess.Popen[bytes]) -> bool:
    """Whether the change was over before the process ended, which is waited for."""
    assert process.stdout is not None
    return process.stdout.readline() == b"done\n"


def took(home: Path, operation: str) -> float:
    """Seconds of an operation that is left alone."""
    with started(home, operation) as process:
        begin = time.perf_counter()
        assert is_done(process)
        return time.perf_counter() - begin


def kill_at_random_moments(
    operations: Sequence[str], kills: int, folder: Path, gguf: Path, seed: int
) -> None:
    """Until so many were killed before they were done."""
    print(f"seed {seed}")
    draw = random.Random(seed)
    base = folder / "base"
    fill(base)
    shutil.copy(gguf, base / GGUF)
    durations: dict[str, float] = {}
    for number, operation in enumerate(islice(cycle(operations), 10 * kills)):
        if operation not in durations:
            durations[operation] = took(copy_store(base, folder / f"alone {operation}"), operation)
        home = copy_store(base, folder / f"home {number}")
        delay = draw.uniform(0, durations[operation])
        with started(home, operation) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(delay)
            process.kill()
            kills -= not is_done(process)
        try:
            see(home, operation)
        except BaseException as error:
            error.add_note(f"{operation} killed after {delay:.3f} s")
            raise
        shutil.rmtree(home)
        if kills == 0:
            return
    raise AssertionError(f"{kills} more should have been killed")


def see(home: Path, operation: str) -> None:
    store = Store(home)
    listed = store.list()
    for manifest in listed:
        store.verify(manifest)
    if operation != "remove":
        assert {manifest.full_name for manifest in listed} >= NAMES
    asyncio.run(OPERATIONS[operation](Store(home), home))
    if operation == "remove":  # What has no name any more cannot be removed again.
        asyncio.run(store.collect_garbage())

    async def damaged() -> list[str]:
        steps = [step async for step in store.verifying([])]
        return [step.model for step in steps if isinstance(step, Verified) and step.damages]

    assert asyncio.run(damaged()) == []
    assert_whole(home)


@pytest.fixture
def seed() -> int:
    return random.randrange(1 << 32)


def test_c10_changes_killed_at_random_moments(tmp_path: Path, tiny_gguf: Path, seed: int) -> None:
    kill_at_random_moments(KILLED, 4, tmp_path, tiny_gguf, seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_c10_changes_killed_at_random_moments_50_times(
    tmp_path: Path, tiny_gguf: Path, seed: int
) -> None:
    kill_at_random_moments(KILLED, length(50, 10), tmp_path, tiny_gguf, seed)


def kill_before_steps(folder: Path, stride: int, seed: int) -> None:
    program = (sys.executable, "-m", "tests.integration.store.kill_points", str(folder))
    subprocess.run([*program, str(stride), str(seed)], check=True, cwd=ROOT)


def test_c10_changes_killed_before_some_of_their_steps(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    kill_before_steps(tmp_path, 20, seed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_c10_changes_killed_before_each_of_their_steps(tmp_path: Path) -> None:
    kill_before_steps(tmp_path, length(1, 6), 0)
