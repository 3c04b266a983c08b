"""A tool call that is under way when its runner dies is carried on by another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace import AsyncClient, Delta, FinishReason, Tool
from headrace_runner.convert.gguf_import import import_gguf
from headrace_server.store import Store
from tests.callers import make_caller
from tests.e2e.harness import StartController

MODEL = "caller:1"
LENGTH = 3000
"""Characters: so many that its runner is still busy when the first ones have come."""
TEXT = {"type": "string", "minLength": LENGTH, "maxLength": LENGTH + 300}
TOOL = Tool(
    "write",
    parameters={
        "type": "object",
        "properties": {"text": TEXT},
        "required": ["text"],
        "additionalProperties": False,
    },
)


@pytest.fixture
async def caller_home(home: Path, tiny_gguf: Path, tmp_path: Path) -> Path:
    plain = tmp_path / "plain"
    plain.mkdir()
    import_gguf(tiny_gguf, plain, lambda phase, done, total: None)
    config = plain / "config.json"
    settings = json.loads(config.read_text()) | {"max_position_embeddings": 100_000}
    config.write_text(json.dumps(settings))
    await Store(home).import_model(make_caller(plain, tmp_path / "caller"), MODEL)
    return home


@pytest.mark.slow
async def test_a_call_goes_on_in_its_midst(caller_home: Path, start: StartController) -> None:
    controller = start(home=caller_home)
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": "the quick brown fox"}],
        "tools": [TOOL],
        "tool_choice": "required",
        "seed": 5,
        "max_tokens": 20_000,
        "request_id": "the-same",
        "logit_bias": {0: 100.0},  # The end of the text comes as soon as it may.
    }
    async with AsyncClient(controller.target) as client:
        whole = await client.complete(MODEL, **asked)
        assert whole.finish_reason is FinishReason.TOOL_CALLS
        assert len(whole.tool_calls[0].arguments["text"]) >= LENGTH
        kills = 0
        async with client.stream_completion(MODEL, **asked) as stream:
            size = 0
            async for event in stream:
                if isinstance(event, Delta):
                    size += sum(len(part.arguments_json) for part in event.tool_calls)
                    if kills < 2 and size > 50 + 200 * kills:
                        controller.runner().kill()
                        kills += 1
            moved = await stream.collect()
    assert moved.tool_calls == whole.tool_calls
    assert moved.token_ids == whole.token_ids
    assert (moved.text, moved.finish_reason) == (whole.text, whole.finish_reason)
    assert moved.completed.resumed == kills == 2
