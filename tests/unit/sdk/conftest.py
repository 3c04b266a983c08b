"""A scripted controller for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.sdk.fake import Fake, serving


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    with serving(tmp_path / "c.sock") as fake:
        yield fake
