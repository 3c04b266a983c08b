"""A small model as a GGUF file, and stores that hold it, imported by the real converter."""

import asyncio
from pathlib import Path

import pytest

from headrace_server.store import Store
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
