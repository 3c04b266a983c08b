"""What the examples of all SDKs are tried against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import MODEL, Controller


@pytest.fixture(scope="session")
def controller(drawing_home: Path) -> Iterator[Controller]:
    """With a model that writes and one that draws."""
    with Controller(drawing_home, "--preload", MODEL, listen="127.0.0.1:0") as running:
        yield running
