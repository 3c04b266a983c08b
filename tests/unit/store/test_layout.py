"""Staging and locks: what processes that share a store see of one another."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace_server.store.layout import Layout, write_into
from headrace_server.store.locks import held, locked, try_lock


def test_staging_is_removed_even_after_a_failure(tmp_path: Path) -> None:
    def fail() -> None:
        with Layout(tmp_path).staging() as staging:
            (staging / "part").write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_staging_of_the_dead_is_swept_and_of_the_living_is_not(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal\n"
        "from headrace_server.store.layout import Layout\n"
        f"with Layout(pathlib.Path({str(tmp_path)!r})).staging() as staging:\n"
        "    (staging / 'half').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False, timeout=30)
    (dead,) = (tmp_path / "tmp").glob("*/half")
    layout = Layout(tmp_path)
    with layout.staging() as alive:
        assert not dead.exists()
        with layout.staging():
            assert alive.exists()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_file_appears_whole(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with layout.staging() as staging:
        write_into("new", staging, tmp_path / "models" / "a.json")
        assert list(staging.iterdir()) == []
    assert (tmp_path / "models" / "a.json").read_text() == "new"


async def test_a_held_lock_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    order = []

    async def wait() -> None:
        async with held(path):
            order.append("second")

    async with held(path):
        waiting = asyncio.create_task(wait())
        await asyncio.wait([waiting], timeout=0.2)
        order.append("first")
    await asyncio.wait_for(waiting, 10)
    assert order == ["first", "second"]


async def test_a_cancelled_waiter_does_not_keep_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"

    async def wait() -> None:
        async with held(path):
            pytest.fail("it was cancelled before its turn")

    async with held(path):
        waiting = asyncio.create_task(wait())
        await asyncio.wait([waiting], timeout=0.2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    async with asyncio.timeout(10), held(path):
        assert try_lock(path) is None


def test_a_lock_excludes(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with locked(path):
        assert try_lock(path) is None
    descriptor = try_lock(path)
    assert descriptor is not None
    os.close(descriptor)
