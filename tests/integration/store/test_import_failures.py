"""C10: imports that fail, are cancelled or are killed leave nothing in the store."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from headrace.errors import HeadraceError, InvalidRequest, ModelCorrupt, UnsupportedModel
from headrace_server.store import Progress, Store
from tests.stores import visible
from tests.unit.convert.tiny import write_gguf


async def refused(source: Path, home: Path, error: type[HeadraceError]) -> HeadraceError:
    with pytest.raises(error) as caught:
        await Store(home).import_model(source, "m")
    assert visible(home) == []
    return caught.value


async def test_c10_a_truncated_gguf(tiny_gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_gguf.read_bytes()[:-1])
    error = await refused(cut, tmp_path / "home", ModelCorrupt)
    assert error.metadata["file"] == "cut.gguf"


async def test_an_architecture_that_is_not_supported(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", architecture="rwkv9")
    error = await refused(tmp_path / "m.gguf", tmp_path / "home", UnsupportedModel)
    assert "rwkv9" in error.message


async def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "song.mp3").write_bytes(b"ID3")
    (tmp_path / "empty").mkdir()
    for name in ("song.mp3", "empty", "nowhere", "nowhere.gguf"):
        error = await refused(tmp_path / name, tmp_path / "home", InvalidRequest)
        assert name in error.message


async def test_cancelled(tiny_gguf: Path, tmp_path: Path) -> None:
    started = asyncio.Event()
    store = Store(tmp_path)
    before = psutil.Process().children(recursive=True)
    importing = asyncio.create_task(
        store.import_model(tiny_gguf, "m", lambda progress: started.set())
    )
    await asyncio.wait_for(started.wait(), 60)
    importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing
    assert visible(tmp_path) == []
    assert set(psutil.Process().children(recursive=True)) <= set(before)


async def test_c10_killed(tiny_gguf: Path, tmp_path: Path) -> None:
    """SIGKILL of the importing process: its converter ends too, and nothing becomes visible."""
    program = (
        "import asyncio, pathlib, sys\n"
        "from headrace_server.store import Store\n"
        "store = Store(pathlib.Path(sys.argv[1]))\n"
        "def say(progress): print(progress.phase, flush=True)\n"
        "asyncio.run(store.import_model(pathlib.Path(sys.argv[2]), 'm', say))\n"
    )
    importer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(tmp_path), str(tiny_gguf)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert importer.stdout is not None
    assert await importer.stdout.readline() == b"convert\n"
    converters = psutil.Process(importer.pid).children()
    assert len(converters) == 1
    os.kill(importer.pid, signal.SIGKILL)
    await importer.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, converters, timeout=10)
    assert alive == []
    store = Store(tmp_path)
    assert store.list() == []
    assert not (tmp_path / "snapshots").exists()
    await store.import_model(tiny_gguf, "m")
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_two_imports_at_once(tiny_gguf: Path, tmp_path: Path) -> None:
    first, second = Store(tmp_path), Store(tmp_path)
    seen: list[Progress] = []
    one, two = await asyncio.gather(
        first.import_model(tiny_gguf, "one", seen.append), second.import_model(tiny_gguf, "two")
    )
    assert one.digest == two.digest
    assert [manifest.full_name for manifest in first.list()] == ["one:latest", "two:latest"]
    first.verify(one)
    assert list((tmp_path / "tmp").iterdir()) == []
