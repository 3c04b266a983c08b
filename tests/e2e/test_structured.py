"""Outputs that are held to a form, by the real model through both processes."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from headrace.client import Client
from headrace.errors import InvalidRequest
from headrace.types import FinishReason
from tests.e2e.harness import MODEL, Controller, headrace
from tests.e2e.pages import examples, first_line, run_example
from tests.lengths import length


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_WORD = {"type": "string", "maxLength": 12}
_SMALL = {"type": "integer", "minimum": 0, "maximum": 99}
SCHEMAS: list[dict[str, Any]] = [
    _object(name=_WORD, age=_SMALL),
    _object(colours={"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3}),
    _object(answer={"type": "boolean"}),
    _object(point={"type": "array", "prefixItems": [_SMALL, _SMALL], "items": False}),
    _object(maybe={"anyOf": [{"type": "null"}, _SMALL]}),
    _object(date={"type": "string", "format": "date"}),
    _object(code={"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"}),
    _object(inner=_object(deep=_object(deeper=_WORD))),
    _object(price={"type": "number", "minimum": 0, "maximum": 10}),
    {"enum": ["a", "b", 3, None]},
    {"const": {"fixed": [1, 2]}},
    {"type": "array", "items": _object(id=_SMALL), "minItems": 1, "maxItems": 2},
    {"$defs": {"n": _SMALL}, "type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 4},
    _object(kind={"const": "cat"}, lives={"type": "integer", "enum": [7, 9]}),
    {"oneOf": [_object(cat=_WORD), _object(dog=_WORD)]},
    _object(mail={"type": "string", "format": "email", "maxLength": 30}),
    _object(words={"type": "array", "items": _WORD, "minItems": 2, "maxItems": 2}),
    _object(uuid={"type": "string", "format": "uuid"}),
    _object(ok={"type": ["boolean", "null"]}, n=_SMALL, s=_WORD),
    _object(even={"type": "integer", "multipleOf": 2, "minimum": 0, "maximum": 50}),
]


def follow(client: Client, schema: dict[str, Any], seed: int) -> None:
    """Has an answer follow a schema; it has to, whatever is drawn."""
    asked = f"Give me JSON that follows {json.dumps(schema)}"
    answer = client.complete(
        MODEL,
        messages=[{"role": "user", "content": asked}],
        json_schema=schema,
        temperature=1,
        seed=seed,
        max_tokens=200,
    )
    assert answer.finish_reason is FinishReason.END_OF_TEXT, answer.text
    checker = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    checker.validate(json.loads(answer.text))


def _all_follow(client: Client, wanted: list[tuple[dict[str, Any], int]]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: follow(client, *each), wanted))


def test_every_schema_is_followed(client: Client) -> None:
    _all_follow(client, [(schema, 1) for schema in SCHEMAS[::3]])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_schema_is_followed_whatever_is_drawn(client: Client) -> None:
    _all_follow(client, [(schema, seed) for seed in range(length(10, 4)) for schema in SCHEMAS])


def test_b5_a_form_changes_nothing_but_what_may_be_drawn(client: Client) -> None:
    """What would have been drawn anyway is drawn with a form too, and seeds hold."""
    options: dict[str, Any] = {"temperature": 0.8, "seed": 5, "max_tokens": 12}
    free = client.complete(MODEL, "Once upon a time", **options)
    held = client.complete(MODEL, "Once upon a time", regex=r"(?s:.)*", **options)
    assert held.token_ids == free.token_ids
    again = client.complete(MODEL, "Once upon a time", regex="[a-z ]+", **options)
    assert again.text == client.complete(MODEL, "Once upon a time", regex="[a-z ]+", **options).text
    assert re.fullmatch("[a-z ]*", again.text)


@pytest.mark.parametrize(
    ("field", "form"),
    [
        ("json_schema", {"json_schema": '{"properties": {"a": {"type": "strin"}}}'}),
        ("regex", {"regex": "("}),
        ("lark_grammar", {"lark_grammar": "start: nothing"}),
        ("stop.ignore_eos", {"choices": ["a"], "ignore_eos": True}),
    ],
)
def test_what_is_wrong_is_named(client: Client, field: str, form: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.complete(MODEL, "x", **form)
    assert [violation.field for violation in caught.value.violations] == [field]
    if field == "json_schema":
        assert "at /properties/a" in caught.value.message


def test_the_command_line_holds_to_a_form(controller: Controller, tmp_path: Path) -> None:
    ended = headrace(controller, "run", MODEL, "Is it?", "--choice", "yes", "--choice", "no")
    assert ended.stdout.strip() in ("yes", "no")
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(_object(n=_SMALL)), encoding="utf-8")
    for given in (str(schema), schema.read_text(encoding="utf-8")):
        ended = headrace(controller, "run", MODEL, "A number.", "--json-schema", given)
        assert set(json.loads(ended.stdout)) == {"n"}
    ended = headrace(controller, "run", MODEL, "x", "--json-schema", "no such file", check=False)
    assert ended.returncode == 2
    assert "neither a file nor a JSON object" in ended.stderr


@pytest.mark.parametrize("example", examples("structured-output.md"), ids=first_line)
def test_the_examples_of_the_docs_run(controller: Controller, example: str) -> None:
    run_example(controller, example)
