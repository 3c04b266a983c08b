"""Taking the model that comes with the runner's package: here a package that the test has made."""

from __future__ import annotations

import json
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from headrace.errors import InvalidRequest, SourceUnavailable
from headrace_runner.convert.gguf_import import import_gguf
from headrace_server.store import Store, bundled


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `headrace_runner` without weights."""
    package = tmp_path / "site" / "headrace_runner"
    package.mkdir(parents=True)
    spec = ModuleSpec("headrace_runner", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(bundled, "find_spec", lambda name: spec)
    return package


@pytest.fixture(scope="module")
def converted(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("weights")
    import_gguf(tiny_gguf, directory, lambda *_: None)
    return directory


@pytest.fixture
def weights(package: Path, converted: Path) -> Path:
    """Those of a model that any converter takes: the package's own come with it."""
    return Path(shutil.copytree(converted, package / "models" / "emoji" / "weights"))


async def test_taken_once_found_by_its_alias_and_replaced_by_another_version(
    weights: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "home")
    first = await store.pull("emoji")
    assert first == store.get("emoji:64") == store.get("emoji")
    assert first.full_name == "emoji:64"
    assert first.source.startswith("bundled:emoji@")
    assert first.license == "Apache-2.0"
    store.verify(first)
    assert await store.pull("emoji:64") == first

    config = json.loads((weights / "config.json").read_text())
    (weights / "config.json").write_text(json.dumps({**config, "version": 2}))
    second = await store.pull("emoji:64")
    assert second.source != first.source
    assert second.digest != first.digest
    assert store.get("emoji") == second
    assert not store.path(first).exists()


async def test_a_damaged_one_is_taken_again(weights: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    manifest = await store.pull("emoji")
    (store.path(manifest) / "config.json").unlink()
    store.verify(await store.pull("emoji"))


async def test_it_does_not_take_the_name_of_another_model(
    weights: Path, home: Path, tiny_gguf: Path
) -> None:
    store = Store(home)
    own = await store.import_model(tiny_gguf, "emoji:64")
    with pytest.raises(InvalidRequest, match=r"from tiny\.gguf"):
        await store.pull("emoji")
    assert store.get("emoji") == own


async def test_a_package_without_weights_and_none_at_all_say_what_to_install(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "home")
    with pytest.raises(SourceUnavailable, match="lacks its weights") as caught:
        await store.pull("emoji")
    assert caught.value.metadata["source"] == "bundled:emoji"
    assert caught.value.retry_after is None
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)
    with pytest.raises(SourceUnavailable, match=r"pip install 'headrace\[runner\]'"):
        await store.pull("emoji")
