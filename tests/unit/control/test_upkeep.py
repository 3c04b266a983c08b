"""Verifying and collecting garbage through a controller, on a store of small models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from headrace import AsyncClient
from headrace.errors import ModelCorrupt, ModelNotFound
from headrace.types import FileDamage, GarbageKind, VerifyProgress
from headrace_server.app import App
from headrace_server.config import ServerConfig
from headrace_server.store import Store
from headrace_server.store.locks import locked
from tests.stores import assert_whole, put, spoil

FILES = {"model.safetensors": b"weights " * 1000, "config.json": b"{}"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    store = Store(tmp_path)
    put(store, "one", FILES)
    put(store, "two", FILES | {"README.md": b"two"})
    return tmp_path


@pytest_asyncio.fixture
async def client(home: Path) -> AsyncIterator[AsyncClient]:
    app = App(ServerConfig(listen=f"unix:{home}/c.sock", home=home, memory=1 << 30))
    address = await app.start()
    try:
        async with AsyncClient(address, timeout=30) as client:
            yield client
    finally:
        await app.close()


async def test_what_is_whole(client: AsyncClient) -> None:
    async with client.verify_models() as stream:
        events = [event async for event in stream]
        found = await stream.collect()
    assert [model.model for model in found.models] == ["one:latest", "two:latest"]
    assert (found.damaged, found.garbage.items) == ((), ())
    last = [event for event in events if isinstance(event, VerifyProgress)][-1]
    assert last.done_bytes == last.total_bytes == 8000 + 2 + 3


async def test_damage_is_named_with_its_remedy_and_no_load_takes_it(
    client: AsyncClient, home: Path
) -> None:
    store = Store(home)
    spoil(store.path(store.get("one")) / "model.safetensors")
    (store.path(store.get("one")) / "config.json").unlink()
    (found,) = (await client.verify_models(["one"]).collect()).models
    assert [(file.file, file.damage) for file in found.damaged] == [
        ("config.json", FileDamage.MISSING),
        ("model.safetensors", FileDamage.CHECKSUM),
    ]
    assert "--replace" in found.remedy
    for name, file in (("one", "config.json"), ("two", "model.safetensors")):
        with pytest.raises(ModelCorrupt) as caught:
            await client.load_model(name)
        assert caught.value.metadata == {"file": file}


async def test_a_damaged_manifest_is_damage_too(client: AsyncClient, home: Path) -> None:
    (home / "models" / "one" / "latest.json").write_text("{")
    for names in ((), ("one",)):
        found = await client.verify_models(names).collect()
        (broken,) = found.damaged
        assert (broken.model, broken.damaged[0].damage) == ("one:latest", FileDamage.MANIFEST)
        assert broken.damaged[0].file == "latest.json"


async def test_an_unknown_model_is_an_error_before_anything_is_read(client: AsyncClient) -> None:
    with pytest.raises(ModelNotFound):
        await client.verify_models(["one", "nothing-like-it"]).collect()


async def test_garbage_is_said_and_then_removed(client: AsyncClient, home: Path) -> None:
    for folder in ("snapshots", "downloads", "blobs"):
        (home / folder).mkdir(exist_ok=True)
    (home / "snapshots" / ("a" * 64)).mkdir()
    (home / "snapshots" / ("a" * 64) / "model.safetensors").write_bytes(b"x" * 100)
    (home / "downloads" / "half").mkdir()
    (home / "downloads" / "half" / "part").write_bytes(b"x" * 10)
    (home / "blobs" / ("b" * 64)).write_bytes(b"x")
    expected = [
        (GarbageKind.SNAPSHOT, "a" * 64, 100),
        (GarbageKind.BLOB, "b" * 64, 1),
        (GarbageKind.DOWNLOAD, "half", 10),
    ]
    verified = (await client.verify_models().collect()).garbage
    said = await client.collect_garbage(dry_run=True)
    done = await client.collect_garbage()
    for garbage in (verified, said, done):
        assert [(i.kind, i.name, i.size_bytes) for i in garbage.items] == expected
        assert garbage.freed_bytes == 111
    assert (await client.collect_garbage()).items == ()
    assert_whole(home)


async def test_downloads_are_kept_while_somebody_pulls(client: AsyncClient, home: Path) -> None:
    (home / "downloads" / "half").mkdir(parents=True)
    with locked(home / "locks" / "pull-smollm2-135m.lock"):
        found = await client.collect_garbage()
        assert found.downloads_in_use
        assert found.items == ()
    assert (home / "downloads" / "half").exists()
    (item,) = (await client.collect_garbage()).items
    assert item.kind is GarbageKind.DOWNLOAD


async def test_what_a_model_takes_by_context_and_requests(client: AsyncClient) -> None:
    model = await client.get_model("one")
    by_use = {(e.context_length, e.concurrency): e.bytes for e in model.memory_estimates}
    assert set(by_use) == {(128, 1), (128, 8), (128, 32)}
    assert by_use[128, 1] < by_use[128, 8] < by_use[128, 32]
    assert model.memory_estimate_bytes in by_use.values()
