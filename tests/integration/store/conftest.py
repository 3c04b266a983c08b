"""A small model as a GGUF file, and stores that hold it, imported by the real converter."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_server.store import Store
from headrace_server.store.sources import pulling
from headrace_server.store.sources.limits import Limits
from tests.hub import Hub, files_in, hub
from tests.stores import copy_store
from tests.unit.convert.tiny import write_gguf


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path


@pytest.fixture(scope="session")
def filled_home(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("filled") / "home"
    asyncio.run(Store(home).import_model(tiny_gguf, "tiny:q4"))
    return home


@pytest.fixture
def home(filled_home: Path, tmp_path: Path) -> Path:
    """A home of one's own with `tiny:q4` in it."""
    return copy_store(filled_home, tmp_path / "home")


@pytest.fixture(scope="session")
def tiny_files(filled_home: Path) -> dict[str, bytes]:
    """The files of `tiny:q4` as a repository has them, and some that nobody wants."""
    store = Store(filled_home)
    useless = {"pytorch_model.bin": b"pickle", "onnx/model.onnx": b"o", "train.py": b"exit()"}
    return files_in(store.path(store.get("tiny:q4"))) | useless


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub and file server of one's own, which is the hub of this test."""
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_HUB_OFFLINE",
        "HTTP_PROXY",
        "http_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for nothing for long."""
    limits = Limits(tries=3, backoff=0.02, longest_wait=2.0, stall=0.5)
    monkeypatch.setattr(pulling, "LIMITS", limits)
