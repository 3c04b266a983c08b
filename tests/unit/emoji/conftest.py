"""The model that comes with the runner, loaded once."""

from __future__ import annotations

import pytest

from headrace_runner.models.emoji.config import read_config, read_words
from headrace_runner.models.emoji.family import SHIPPED, traits
from headrace_runner.models.emoji.pipeline import EmojiPipeline, load


@pytest.fixture(scope="session")
def pipeline() -> EmojiPipeline:
    config = read_config(SHIPPED)
    return load(SHIPPED, config, read_words(SHIPPED, config), traits(config), "float32")
