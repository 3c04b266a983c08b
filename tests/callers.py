"""A model that calls tools as Qwen and Hermes do, and has learnt nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

_TEMPLATE = """
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for m in messages %}<|user|>{{ m.role }} {{ m.content }}
{%- for tool_call in m.tool_calls or [] %}<tool_call>
{"name": {{ tool_call.function.name | tojson }}{# tool_call.name #}, "arguments": {}}
</tool_call>{% endfor %}
{%- if m.tool_call_id %} {{ m.tool_call_id }}{% endif %}<|end|>{% endfor %}"""
_MARKS = {"Ġsleep": "<tool_call>", "Ġquick": "</tool_call>"}


def make_caller(plain: Path, directory: Path) -> Path:
    """A copy of the tiny model with the markers of tool calls in place of two of its words."""
    shutil.copytree(plain, directory)
    file = directory / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    for word, mark in _MARKS.items():
        vocabulary[mark] = vocabulary.pop(word)
        tokenizer["added_tokens"].append(
            tokenizer["added_tokens"][0]
            | {"id": vocabulary[mark], "content": mark, "special": False}
        )
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [m for m in merges if "".join(m) not in _MARKS]
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    return directory
