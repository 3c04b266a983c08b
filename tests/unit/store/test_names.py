"""Model names: what is one, and that none reaches outside the store."""

import pytest

from headrace.errors import InvalidRequest
from headrace_server.store.names import ModelName, parse_name


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("smollm2", ModelName("smollm2", "latest")),
        ("smollm2:135m", ModelName("smollm2", "135m")),
        ("team/llama-3.1/base:q4_1", ModelName("team/llama-3.1/base", "q4_1")),
        ("7b", ModelName("7b", "latest")),
    ],
)
def test_valid(text: str, wanted: ModelName) -> None:
    assert parse_name(text) == wanted
    assert parse_name(str(wanted)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "a:", ":b", "a:b:c", "a:b/c", "a/b/c/d", "a//b", "/a", "a/", "A", "a b", "ä"),
        *("..", ".a", "a/../b", "a/..", "a:..", "../a", "~a", "a\\b", "a\0", "a\n", "latest.json"),
        "x" * 201,
    ],
)
def test_invalid(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_name(text, field="destination")
    assert caught.value.violations[0].field == "destination"
    assert len(caught.value.message) < 600
