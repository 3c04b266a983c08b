"""The store with real imports: what is found, shared, removed, and noticed as damaged."""

import asyncio
import logging
from pathlib import Path

import pytest

from headrace.errors import InvalidRequest, ModelCorrupt, ModelNotFound
from headrace_server.store import ImportOptions, Progress, Store
from headrace_server.store.locks import locked
from tests.stores import cut, spoil, visible


def test_what_was_imported_is_found(home: Path) -> None:
    store = Store(home)
    manifest = store.get("tiny:q4")
    assert store.list() == [manifest]
    assert (manifest.quantization, manifest.context_length) == ("Q4_1", 256)
    assert manifest.source == "tiny.gguf"
    assert manifest.license == "mit"
    assert {path.name for path in store.path(manifest).iterdir()} == {
        file.path for file in manifest.files
    }
    store.verify(manifest)


async def test_a_directory_is_imported_and_shares_the_digest(home: Path, tmp_path: Path) -> None:
    store = Store(home)
    seen: list[Progress] = []
    directory = store.path(store.get("tiny:q4"))
    manifest = await store.import_model(directory, "copy", seen.append)
    assert manifest.digest == store.get("tiny:q4").digest
    assert len(list((home / "snapshots").iterdir())) == 1
    assert {progress.phase for progress in seen} == {"store", "verify"}
    last = {progress.phase: progress for progress in seen}
    assert all(progress.done == progress.total for progress in last.values())


async def test_a_taken_name_is_replaced_only_when_told(home: Path, tiny_gguf: Path) -> None:
    store = Store(home)
    before = visible(home)
    with pytest.raises(InvalidRequest) as caught:
        await store.import_model(tiny_gguf, "tiny:q4")
    assert caught.value.violations[0].field == "model"
    assert visible(home) == before
    directory = store.path(store.get("tiny:q4"))
    (directory / "README.md").write_text("another model")
    replaced = await store.import_model(directory, "tiny:q4", replace=True)
    assert store.get("tiny:q4") == replaced
    assert [path.name for path in (home / "snapshots").iterdir()] == [replaced.digest[7:]]


async def test_an_import_leaves_the_loop_free_while_another_process_changes_the_store(
    home: Path, tiny_gguf: Path
) -> None:
    with locked(home / "locks" / "store.lock"):
        importing = asyncio.create_task(Store(home).import_model(tiny_gguf, "second"))
        done, _ = await asyncio.wait({importing}, timeout=0.2)
        assert not done
    assert (await importing).full_name == "second:latest"


async def test_an_import_cancelled_as_it_begins_leaves_nothing(home: Path, tiny_gguf: Path) -> None:
    before = visible(home)
    with locked(home / "locks" / "store.lock"):
        importing = asyncio.create_task(Store(home).import_model(tiny_gguf, "second"))
        await asyncio.wait({importing}, timeout=0.2)
        importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing
    assert visible(home) == before


def test_names_share_files_until_the_last_is_gone(home: Path) -> None:
    store = Store(home)
    size = store.get("tiny:q4").size
    copied = store.copy("tiny:q4", "team/tiny")
    assert copied.full_name == "team/tiny:latest"
    assert store.delete("tiny:q4") == 0
    store.verify(store.get("team/tiny"))
    assert store.delete("team/tiny") == size
    assert visible(home) == []
    with pytest.raises(ModelNotFound):
        store.delete("team/tiny")


async def test_a_copy_does_not_take_anothers_name(home: Path) -> None:
    store = Store(home)
    directory = store.path(store.get("tiny:q4"))
    await store.import_model(directory, "same")
    assert store.copy("tiny:q4", "same").full_name == "same:latest"
    (directory / "README.md").write_text("another model")
    other = await store.import_model(directory, "other")
    with pytest.raises(InvalidRequest, match="other:latest"):
        store.copy("tiny:q4", "other")
    assert store.get("other") == other


def test_unknown_names_get_the_nearest(home: Path) -> None:
    store = Store(home)
    with pytest.raises(ModelNotFound) as caught:
        store.get("tiny:q5")
    assert caught.value.metadata["nearest"] == "tiny:q4"
    with pytest.raises(ModelNotFound, match="headrace pull smollm2:135m"):
        store.get("smollm2")


async def test_a_catalogue_alias_finds_the_pulled_name(home: Path) -> None:
    store = Store(home)
    store.copy("tiny:q4", "smollm2:135m")
    assert store.get("smollm2").full_name == "smollm2:135m"
    with pytest.raises(ModelNotFound):
        await store.pull("tiny:q4")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_c10_a_cut_or_missing_file_is_named(home: Path, name: str) -> None:
    store = Store(home)
    manifest = store.get("tiny:q4")
    file = store.path(manifest) / name
    cut(file, file.stat().st_size - 1)
    with pytest.raises(ModelCorrupt) as caught:
        store.check(manifest)
    assert caught.value.metadata["file"] == name
    file.unlink()
    with pytest.raises(ModelCorrupt, match="missing"):
        store.check(manifest)


def test_c10_a_flipped_bit_is_found_by_verify(home: Path) -> None:
    store = Store(home)
    manifest = store.get("tiny:q4")
    file = store.path(manifest) / "model.safetensors"
    spoil(file)
    store.check(manifest)
    # Once it is found, no load takes it.
    for look in (store.verify, store.check):
        with pytest.raises(ModelCorrupt) as caught:
            look(manifest)
        assert caught.value.metadata["file"] == "model.safetensors"


async def test_c10_an_import_heals_a_damaged_model(home: Path, tiny_gguf: Path) -> None:
    store = Store(home)
    manifest = store.get("tiny:q4")
    (store.path(manifest) / "model.safetensors").unlink()
    healed = await store.import_model(tiny_gguf, "tiny:q4", replace=True)
    assert healed.digest == manifest.digest
    store.verify(healed)


def test_c10_a_damaged_manifest_hides_one_model_alone(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(home)
    store.copy("tiny:q4", "second")
    (home / "models" / "tiny" / "q4.json").write_text('{"schema": 1, ')
    with caplog.at_level(logging.WARNING):
        assert [manifest.full_name for manifest in store.list()] == ["second:latest"]
    assert "q4.json" in caplog.text
    with pytest.raises(ModelCorrupt) as caught:
        store.get("tiny:q4")
    assert caught.value.metadata["file"] == "q4.json"
    store.delete("tiny:q4")
    with pytest.raises(ModelNotFound):
        store.get("tiny:q4")
    store.verify(store.get("second"))


async def test_quantised_as_asked(tiny_gguf: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    plain = await store.import_model(tiny_gguf, "plain", options=ImportOptions(quantize="none"))
    assert plain.quantization == "float16 of Q4_1"
    packed = await store.import_model(
        store.path(plain), "packed", options=ImportOptions(quantize="8")
    )
    assert packed.quantization == "8-bit g32"
    assert packed.parameters == plain.parameters
    assert packed.size < plain.size


async def test_what_is_no_language_model_is_not_quantised(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await store.pull("emoji:64")
    with pytest.raises(InvalidRequest, match="an image model is not quantised") as caught:
        await store.import_model(
            store.path(store.get("emoji:64")), "mine", options=ImportOptions(quantize="4")
        )
    assert [model.full_name for model in store.list()] == ["emoji:64"]
    assert [found.field for found in caught.value.violations] == ["quantization"]
