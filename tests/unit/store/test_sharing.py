"""What models have in common is kept once; damage neither spreads nor stays."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ModelCorrupt
from headrace_server.store import Damage, Reading, Store, Verified, sharing
from headrace_server.store.damage import Verification
from headrace_server.store.layout import Layout
from tests.stores import assert_whole, copy_store, cut, put, spoil, visible

WEIGHTS = b"weights " * 1000
ONE = {"model.safetensors": WEIGHTS, "config.json": b"{}", "parts/tokenizer.json": b"words"}
OTHER = {"model.safetensors": b"more " * 2000, "config.json": b"{}", "tokenizer.json": b"words"}
ADAPTED = ONE | {"README.md": b"adapted"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


async def verified(store: Store, *names: str) -> dict[str, tuple[Damage, ...]]:
    """What is damaged, by model."""
    steps = [step async for step in store.verifying(names)]
    return {step.model: step.damages for step in steps if isinstance(step, Verified)}


def weights(store: Store, name: str) -> Path:
    return store.path(store.get(name)) / "model.safetensors"


def room(home: Path) -> int:
    """Bytes that the models take, each file once."""
    files = [p for d in ("snapshots", "blobs") for p in (home / d).rglob("*") if p.is_file()]
    return sum({file.stat().st_ino: file.stat().st_size for file in files}.values())


def test_files_of_the_same_content_are_one_and_nobody_writes_to_them(
    store: Store, home: Path
) -> None:
    put(store, "one", ONE)
    before = room(home)
    put(store, "adapted", ADAPTED)
    put(store, "other", OTHER)
    assert room(home) == before + len(b"adapted") + len(OTHER["model.safetensors"])
    assert weights(store, "one").samefile(weights(store, "adapted"))
    assert stat.S_IMODE(weights(store, "one").stat().st_mode) == 0o444
    assert_whole(home)


def test_room_is_freed_as_the_last_model_goes(store: Store, home: Path) -> None:
    for name, files in (("one", ONE), ("adapted", ADAPTED), ("other", OTHER)):
        put(store, name, files)
    assert store.delete("one") == 0
    assert_whole(home)
    # The configuration and the words are the other's as well.
    assert store.delete("adapted") == len(WEIGHTS) + len(b"adapted")
    assert_whole(home)
    assert store.delete("other") == sum(map(len, OTHER.values()))
    assert visible(home) == []


async def test_a_damaged_file_is_given_to_no_other_model_and_heals_everywhere(
    store: Store, home: Path
) -> None:
    """One bit, which nobody has noticed so far."""
    put(store, "one", ONE)
    put(store, "adapted", ADAPTED)
    spoil(weights(store, "one"))
    put(store, "third", ONE | {"LICENSE": b"mit"})
    assert_whole(home)


async def test_verify_marks_what_it_finds_for_all_who_share_it(store: Store, home: Path) -> None:
    put(store, "one", ONE)
    put(store, "adapted", ADAPTED)
    put(store, "other", OTHER)
    for name in ("one", "adapted"):
        store.check(store.get(name))
    spoil(weights(store, "one"))
    changed = Damage("model.safetensors", "checksum", "has not the checksum it was stored with")
    assert await verified(store, "adapted") == {"adapted:latest": (changed,)}
    # From now on neither is loaded, and a pull would fetch them again.
    for name in ("one", "adapted"):
        with pytest.raises(ModelCorrupt) as caught:
            Store(home).check(store.get(name))
        assert caught.value.metadata == {"file": "model.safetensors"}
    store.check(store.get("other"))
    assert await verified(store) == {
        "adapted:latest": (changed,),
        "one:latest": (changed,),
        "other:latest": (),
    }
    put(store, "one", ONE, replace=True)
    assert_whole(home)
    assert set((await verified(store)).values()) == {()}


async def test_a_file_that_is_good_again_loses_its_mark(store: Store, home: Path) -> None:
    put(store, "one", ONE)
    spoil(weights(store, "one"))
    assert (await verified(store))["one:latest"]
    spoil(weights(store, "one"))  # The same bit.
    assert (await verified(store))["one:latest"] == ()
    store.check(store.get("one"))
    await store.collect_garbage()
    assert_whole(home)


@pytest.mark.parametrize("name", ["model.safetensors", "parts/tokenizer.json"])
async def test_what_is_missing_or_cut_heals_by_bringing_it_again(
    store: Store, home: Path, name: str
) -> None:
    put(store, "one", ONE)
    file = store.path(store.get("one")) / name
    kept = (store.path(store.get("one")) / "config.json").stat().st_ino
    cut(file, 3)
    assert [d.kind for d in (await verified(store))["one:latest"]] == ["size"]
    put(store, "one", ONE, replace=True)
    assert_whole(home)
    file.unlink()
    assert [d.kind for d in (await verified(store))["one:latest"]] == ["missing"]
    put(store, "one", ONE, replace=True)
    assert_whole(home)
    file.unlink()
    file.mkdir()
    put(store, "one", ONE, replace=True)
    assert_whole(home)
    shutil.rmtree(file.parent)
    put(store, "one", ONE, replace=True)
    assert_whole(home)
    assert (store.path(store.get("one")) / "config.json").stat().st_ino == kept


async def test_verifying_reads_what_is_shared_once(store: Store, home: Path) -> None:
    put(store, "one", ONE)
    put(store, "adapted", ADAPTED)
    store.copy("one", "copy")
    steps = [step async for step in store.verifying([])]
    last = [step for step in steps if isinstance(step, Reading)][-1]
    assert last.done == last.total == sum(map(len, ADAPTED.values()))
    verification = Verification(Layout(home), store.list(), store.list)
    assert len([step for step in verification.steps() if isinstance(step, Verified)]) == 3
    assert verification._done == last.total


async def test_a_store_of_an_earlier_version_is_read_and_shared_at_the_next_change(
    store: Store, home: Path
) -> None:
    put(store, "one", ONE)
    shutil.rmtree(home / "blobs")
    assert (await verified(store)) == {"one:latest": ()}
    put(store, "adapted", ADAPTED)
    assert_whole(home)


async def test_a_copy_that_lost_its_links_is_shared_again_by_collecting(
    store: Store, home: Path, tmp_path: Path
) -> None:
    put(store, "one", ONE)
    put(store, "adapted", ADAPTED)
    before = room(home)
    copied = Path(shutil.copytree(home, tmp_path / "copied"))
    shutil.rmtree(copied / "blobs")
    lost = room(copied) - before
    store = Store(copied)
    assert (await store.find_garbage()).size == lost > 0
    freed = await store.collect_garbage()
    assert freed.size == lost
    assert {item.kind for item in freed.items} == {"duplicate"}
    assert room(copied) == before
    assert_whole(copied)
    assert (await store.collect_garbage()).items == ()


async def test_what_differs_is_not_shared_though_it_goes_by_one_checksum(
    store: Store, home: Path, tmp_path: Path
) -> None:
    put(store, "one", ONE)
    put(store, "adapted", ADAPTED)
    copied = Path(shutil.copytree(home, tmp_path / "copied"))
    shutil.rmtree(copied / "blobs")
    store = Store(copied)
    spoil(weights(store, "one"))
    await store.collect_garbage()
    assert not weights(store, "one").samefile(weights(store, "adapted"))
    found = await verified(store)
    assert [damage.file for damage in found["one:latest"]] == ["model.safetensors"]
    assert found["adapted:latest"] == ()
    put(store, "one", ONE, replace=True)
    await store.collect_garbage()
    assert_whole(copied)


async def test_without_hard_links_each_has_its_own_and_it_is_said_once(
    store: Store, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with caplog.at_level(logging.INFO, sharing.__name__):
        put(store, "one", ONE)
        put(store, "adapted", ADAPTED)
    assert caplog.text.count("hard links") == 1
    assert not weights(store, "one").samefile(weights(store, "adapted"))
    assert set((await verified(store)).values()) == {()}
    spoil(weights(store, "one"))
    found = await verified(store)
    assert len(found["one:latest"]) == 1
    assert found["adapted:latest"] == ()
    other = weights(store, "adapted").stat().st_ino
    put(store, "one", ONE, replace=True)
    put(store, "adapted", ADAPTED, replace=True)
    assert weights(store, "adapted").stat().st_ino == other
    for name in ("one", "adapted"):
        store.check(store.get(name))
    assert set((await verified(store)).values()) == {()}
    for name in ("one", "adapted"):
        store.delete(name)
    assert visible(home) == []


async def test_a_snapshot_that_lies_in_another_store_is_left_as_it_is(
    store: Store, home: Path, tmp_path: Path
) -> None:
    put(store, "one", ONE)
    borrowed = tmp_path / "borrowed"
    shutil.copytree(home / "models", borrowed / "models")
    (borrowed / "snapshots").mkdir()
    for snapshot in (home / "snapshots").iterdir():
        (borrowed / "snapshots" / snapshot.name).symlink_to(snapshot)
    before = weights(store, "one").stat()
    other = Store(borrowed)
    put(other, "adapted", ADAPTED)
    other.copy("one", "more")
    assert weights(store, "one").stat().st_nlink == before.st_nlink
    put(other, "again", ONE)
    assert set((await verified(other)).values()) == {()}
    for name in ("one", "more", "again", "adapted"):
        other.delete(name)
    assert visible(borrowed) == []
    after = weights(store, "one").stat()
    assert (after.st_ino, after.st_nlink) == (before.st_ino, before.st_nlink)
    assert_whole(home)


def test_a_damaged_manifest_keeps_its_files(store: Store, home: Path) -> None:
    put(store, "one", ONE)
    put(store, "other", OTHER)
    manifest = store.get("one")
    path = home / "models" / "one" / "latest.json"
    text = path.read_text()
    path.write_text(text[:-2])
    store.delete("other")
    path.write_text(text)
    store.verify(manifest)
    assert_whole(home)


def test_a_copy_keeps_the_links(store: Store, home: Path, tmp_path: Path) -> None:
    put(store, "one", ONE)
    put(store, "adapted", ADAPTED)
    assert_whole(copy_store(home, tmp_path / "copied"))
