"""Files that are damaged: found at import or at load, named, and never half in the store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from headrace import AsyncClient
from headrace.errors import ModelCorrupt, UnsupportedModel
from headrace_server.store import Store
from tests.e2e.beside import undisturbed
from tests.e2e.conftest import TINY
from tests.e2e.harness import MODEL, PATIENCE, Controller, StartController, headrace
from tests.stores import spoil
from tests.unit.convert.tiny import write_gguf


def own_snapshot(home: Path, name: str) -> Path:
    """A model's directory in a borrowed home, made the home's own."""
    store = Store(home)
    snapshot = store.path(store.get(name))
    original = snapshot.resolve()
    snapshot.unlink()
    # Bytes alone: the store's own files are read-only.
    shutil.copytree(original, snapshot, copy_function=shutil.copyfile)
    return snapshot


def everything(home: Path) -> dict[str, int]:
    """Every file of a store but its locks, with its size."""
    return {
        str(path.relative_to(home)): path.stat().st_size
        for folder in ("models", "snapshots", "blobs", "downloads", "tmp")
        for path in (home / folder).rglob("*")
        if path.is_file()
    }


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def spoil_the_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        pytest.param(spoil_the_header, marks=pytest.mark.slow),
        pytest.param(Path.unlink, marks=pytest.mark.slow),
    ],
)
async def test_c10_weights_that_are_damaged_in_the_store(
    damage: Callable[[Path], None], home: Path, start: StartController
) -> None:
    damage(own_snapshot(home, TINY) / "model.safetensors")
    controller = start(home=home)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        with pytest.raises(ModelCorrupt) as caught:
            await client.complete(TINY, "x", max_tokens=1)
        assert caught.value.code is grpc.StatusCode.DATA_LOSS
        assert caught.value.metadata == {"file": "model.safetensors"}
        assert "model.safetensors" in caught.value.message
        assert controller.runners() == []
        # It can be removed and brought in again.
        assert await client.delete_model(TINY) >= 0
        assert [model.name for model in await client.list_models()] == [MODEL]


async def test_c10_weights_that_do_not_fit_the_model(home: Path, start: StartController) -> None:
    """Every file is as long as it was, so only the load can tell."""
    file = own_snapshot(home, TINY) / "config.json"
    config = file.read_text()
    assert '"num_hidden_layers": 2' in config
    file.write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))

    controller = start(home=home)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client, undisturbed(client):
        for _ in range(2):
            with pytest.raises(ModelCorrupt) as caught:
                await client.complete(TINY, "x", max_tokens=1)
            assert caught.value.metadata == {"file": "config.json"}
        assert [model.name for model in await client.list_models(loaded=True)] == [MODEL]


async def test_c10_a_manifest_that_is_damaged(home: Path, start: StartController) -> None:
    manifest = home / "models" / "tiny" / "q4.json"
    manifest.write_text(manifest.read_text()[:100])
    controller = start(home=home)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        with pytest.raises(ModelCorrupt) as caught:
            await client.complete(TINY, "x", max_tokens=1)
        assert caught.value.metadata == {"file": "q4.json"}
        assert [model.name for model in await client.list_models()] == [MODEL]
        await client.delete_model(TINY)


async def test_files_that_vanish_while_the_model_is_served(
    home: Path, start: StartController
) -> None:
    """What is loaded serves on. Once it has gone, the next load says what is missing, at once."""
    snapshot = own_snapshot(home, TINY)
    controller = start(home=home)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        before = await client.complete(TINY, "fox", temperature=0, max_tokens=4)
        served = controller.runner()
        async with undisturbed(client):
            shutil.rmtree(snapshot)
            after = await client.complete(TINY, "fox", temperature=0, max_tokens=4)
            assert after.text == before.text
            served.kill()
            for _ in range(2):
                with pytest.raises(ModelCorrupt) as caught:
                    await client.complete(TINY, "fox", max_tokens=1)
                assert caught.value.code is grpc.StatusCode.DATA_LOSS
                assert caught.value.metadata["file"]
            # Another model's requests do not notice.
            other = await client.complete(MODEL, "1, 2, 3,", temperature=0, max_tokens=3)
            assert other.text.startswith(" 4")
        assert [model.name for model in await client.list_models(loaded=True)] == [MODEL]


@pytest.mark.parametrize("damage", [cut, pytest.param(spoil_the_header, marks=pytest.mark.slow)])
async def test_c10_a_file_that_is_damaged_at_import(
    damage: Callable[[Path], None],
    home: Path,
    tiny_gguf: Path,
    tmp_path: Path,
    start: StartController,
) -> None:
    source = tmp_path / "broken.gguf"
    shutil.copy(tiny_gguf, source)
    damage(source)
    controller = start(home=home)
    before = everything(home)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        with pytest.raises(ModelCorrupt) as caught:
            await client.import_model(source, "broken").collect()
        assert caught.value.code is grpc.StatusCode.DATA_LOSS
        assert caught.value.metadata == {"file": "broken.gguf"}
    assert everything(home) == before


async def test_c10_a_directory_that_is_damaged_at_import(
    home: Path, tmp_path: Path, start: StartController
) -> None:
    store = Store(home)
    source = tmp_path / "source"
    shutil.copytree(store.path(store.get(TINY)), source, copy_function=shutil.copyfile)
    cut(source / "model.safetensors")
    controller = start(home=home)
    before = everything(home)
    async with AsyncClient(controller.target, timeout=PATIENCE) as client:
        with pytest.raises(ModelCorrupt) as caught:
            await client.import_model(source, "broken").collect()
        assert caught.value.metadata == {"file": "model.safetensors"}
        (source / "config.json").write_text("{}")
        with pytest.raises(ModelCorrupt) as caught:
            await client.import_model(source, "broken").collect()
        assert caught.value.metadata == {"file": "config.json"}
        # Nor is anything kept of one that cannot be run.
        write_gguf(tmp_path / "other.gguf", architecture="rwkv9")
        with pytest.raises(UnsupportedModel):
            await client.import_model(tmp_path / "other.gguf", "broken").collect()
    assert everything(home) == before


def test_the_command_line_finds_damage_and_what_heals_it(
    home: Path, tiny_gguf: Path, start: StartController
) -> None:
    """A bit that nobody would have noticed."""
    controller = start(home=home)
    headrace(controller, "verify", TINY)
    spoil(own_snapshot(home, TINY) / "tokenizer.json")
    ended = headrace(controller, "verify", TINY, check=False)
    assert ended.returncode == 1
    assert "  tokenizer.json has not the checksum" in ended.stdout
    refused = headrace(controller, "run", TINY, "--raw", "fox", check=False)
    assert refused.returncode == 1
    assert "tokenizer.json" in refused.stderr
    headrace(controller, "import", str(tiny_gguf), TINY, "--replace")
    headrace(controller, "verify", TINY)
    headrace(controller, "run", TINY, "--raw", "fox", "--max-tokens", "1")
    assert "nothing to remove" in headrace(controller, "gc").stdout


def test_the_command_line_says_which_file(
    home: Path, tiny_gguf: Path, tmp_path: Path, start: StartController
) -> None:
    source = tmp_path / "broken.gguf"
    shutil.copy(tiny_gguf, source)
    cut(source)
    controller: Controller = start(home=home)
    ended = headrace(controller, "import", str(source), "broken", check=False)
    assert ended.returncode == 1
    assert "broken.gguf" in ended.stderr
    assert "Traceback" not in ended.stderr
