"""JSON Schema: for each keyword that is supported, what it lets through and what it does not.

The cases are of the kind of the JSON Schema Test Suite (draft 2020-12), for what a grammar can say.
"""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from headrace_runner.models.grammar import GrammarError, Grammars
from tests.unit.engine.tiny import EOS, VOCABULARY, byte_tokenizer

OPEN = {"additionalProperties": False}
CASES: list[tuple[Any, list[Any], list[Any]]] = [
    (True, [1, "a", None, [1, {"b": []}], {}], []),
    ({}, [True, -0.5, [[]]], []),
    ({"type": "null"}, [None], [False, 0, ""]),
    ({"type": "boolean"}, [True, False], [0, "true", None]),
    ({"type": "integer"}, [0, -7, 12345678901], [1.5, "1", True]),
    ({"type": "number"}, [0, -1.25, 1e30], ["1", None]),
    ({"type": "string"}, ["", 'é"\\\n', "😀"], [1, None, []]),
    ({"type": ["integer", "null"]}, [3, None], ["3", 1.5]),
    ({"enum": [1, "a", None, {"b": [2]}]}, [1, "a", None, {"b": [2]}], [2, "b", {"b": [3]}]),
    ({"const": "x"}, ["x"], ["y", 1]),
    ({"const": {"a": 1}}, [{"a": 1}], [{"a": 2}, {}]),
    ({"type": "integer", "minimum": 3}, [3, 100], [2, -3]),
    ({"type": "integer", "maximum": 3}, [3, -100], [4, 30]),
    ({"type": "integer", "exclusiveMinimum": 3}, [4], [3]),
    ({"type": "integer", "exclusiveMaximum": 3}, [2], [3]),
    ({"type": "integer", "minimum": -5, "maximum": 12}, [-5, 0, 12], [-6, 13, 120]),
    ({"type": "number", "minimum": 0, "maximum": 1}, [0, 0.25, 1], [-0.5, 1.5]),
    ({"type": "integer", "multipleOf": 5}, [0, 5, 35], [3, 36]),
    ({"type": "string", "minLength": 2}, ["ab", "abc"], ["", "a"]),
    ({"type": "string", "maxLength": 2}, ["", "éß"], ["abc"]),
    ({"type": "string", "pattern": "^a+$"}, ["a", "aaa"], ["", "ab"]),
    ({"type": "string", "format": "date"}, ["2026-11-30"], ["2026-13-01", "today"]),
    ({"type": "string", "format": "time"}, ["12:30:00Z"], ["25 o'clock"]),
    ({"type": "string", "format": "uuid"}, ["2eb8aa08-aa98-11ea-b4aa-73b441d16380"], ["2eb8aa08"]),
    ({"type": "string", "format": "ipv4"}, ["127.0.0.1"], ["1.2.3"]),
    ({"type": "array"}, [[], [1, "a"]], [{}, "[]"]),
    ({"type": "array", "items": {"type": "integer"}}, [[], [1, 2]], [["a"], [1, None]]),
    ({"type": "array", "minItems": 2}, [[1, 2], [1, 2, 3]], [[], [1]]),
    ({"type": "array", "maxItems": 1}, [[], [1]], [[1, 2]]),
    (
        {"type": "array", "prefixItems": [{"type": "integer"}, {"const": "a"}], "items": False},
        [[1, "a"]],
        [["a", 1], [1, "a", 2]],
    ),
    ({"type": "object"}, [{}, {"a": {"b": 1}}], [[], "{}"]),
    ({"type": "object", "properties": {"a": {"const": 1}}}, [{}, {"a": 1}, {"b": 9}], [{"a": 2}]),
    ({"type": "object", "properties": {"a": {}}, **OPEN}, [{}, {"a": None}], [{"b": 1}]),
    ({"type": "object", "properties": {"a": {}}, "required": ["a"], **OPEN}, [{"a": 1}], [{}]),
    ({"type": "object", "required": ["z"]}, [{"z": 1}], [{}]),
    ({"type": "object", "minProperties": 2}, [{"a": 1, "b": 2}], [{}, {"a": 1}]),
    ({"type": "object", "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{"x": 1}], [{"x": "1"}]),
    (
        {"type": "object", "patternProperties": {"^n_": {"type": "integer"}}, **OPEN},
        [{"n_a": 1}, {}],
        [{"n_a": "1"}, {"m": 1}],
    ),
    ({"anyOf": [{"type": "integer"}, {"const": "a"}]}, [1, "a"], ["b", None]),
    ({"oneOf": [{"type": "integer"}, {"const": "a"}]}, [1, "a"], ["b", 1.5]),
    (
        {"allOf": [{"type": "integer", "minimum": 2}, {"type": "integer", "maximum": 4}]},
        [3],
        [1, 5],
    ),
    ({"$ref": "#/$defs/n", "$defs": {"n": {"const": 4}}}, [4], [5]),
    (
        {
            "$ref": "#/$defs/tree",
            "$defs": {
                "tree": {
                    "type": "object",
                    "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
                    "required": ["next"],
                    **OPEN,
                }
            },
        },
        [{"next": None}, {"next": {"next": {"next": None}}}],
        [{}, {"next": 1}, {"next": {"next": 2}}],
    ),
    ({"title": "t", "description": "d", "default": 1, "type": "integer"}, [1], ["1"]),
]

_GRAMMARS = Grammars(byte_tokenizer())


def accepts(schema: Any, text: str) -> bool:
    """Whether a text is a whole output under a schema."""
    matcher = _GRAMMARS.compile("json_schema", json.dumps(schema)).matcher()
    allowed = np.ones(VOCABULARY, np.bool_)
    try:
        for byte in text.encode():
            matcher.mark(allowed)
            if not allowed[byte]:
                return False
            matcher.take(byte)
        matcher.mark(allowed)
    except GrammarError:
        return False
    return bool(allowed[EOS])


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=lambda value: str(value)[:40])
def test_a_schema_lets_through_what_is_valid_and_nothing_else(
    schema: Any, valid: list[Any], invalid: list[Any]
) -> None:
    judge = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    for instance in valid:
        assert judge.is_valid(instance)
        assert accepts(schema, json.dumps(instance, ensure_ascii=False)), instance
        assert accepts(schema, json.dumps(instance, indent=2, ensure_ascii=False)), instance
    for instance in invalid:
        assert not accepts(schema, json.dumps(instance)), instance


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "string"}},
        {"type": "array", "uniqueItems": True},
        {"if": {"const": 1}, "then": {"const": 1}},
        {"type": "array", "contains": {"const": 1}},
        {"type": "string", "format": "star-date"},
        {"type": "object", "propertyNames": {"pattern": "^a"}},
        {"dependentSchemas": {"a": {}}},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        False,
    ],
    ids=str,
)
def test_what_a_grammar_cannot_say_is_refused(schema: Any) -> None:
    with pytest.raises(GrammarError):
        _GRAMMARS.compile("json_schema", json.dumps(schema))
