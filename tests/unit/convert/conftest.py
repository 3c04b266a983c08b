"""The small model that the tests of conversion share."""

from pathlib import Path

import pytest

from tests.unit.convert.tiny import write_gguf


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path)
    return path
