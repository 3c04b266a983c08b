"""A tiny random model and a tokenizer whose tokens are bytes."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_runner.models.tokenizer import Tokenizer
from tests.unit.engine.tiny import byte_tokenizer, tiny_model


@pytest.fixture(scope="session")
def model() -> Any:
    return tiny_model()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()
