"""Grammars: what they are made of, what is wrong with them, and what they allow."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_runner.models.grammar import Grammar, GrammarError, Grammars, Kind
from headrace_runner.models.schema import LONGEST_STRING, bounded, place_of_error, read_schema
from headrace_runner.models.tokenizer import Tokenizer
from tests.unit.engine.tiny import EOS, VOCABULARY, byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


def next_of(grammar: Grammar, text: str) -> set[int]:
    """Tokens that may follow a text. Raises GrammarError where the text itself may not be."""
    matcher = grammar.matcher()
    allowed = np.ones(VOCABULARY + 3, np.bool_)
    for byte in text.encode():
        matcher.take(byte)
    matcher.mark(allowed)
    return {int(token) for token in np.flatnonzero(allowed)}


def letters(text: str) -> set[int]:
    return set(text.encode())


@pytest.mark.parametrize(
    ("kind", "text", "so_far", "allowed"),
    [
        ("regex", "a[bc]d?", "a", letters("bc")),
        ("regex", "a[bc]d?", "ab", letters("d") | {EOS}),
        ("regex", "a[bc]d?", "abd", {EOS}),
        ("lark_grammar", 'start: "x" word+\nword: "y" | "z"', "x", letters("yz")),
        ("choices", ["yes", "yet", 'a "quote"\\'], "ye", letters("st")),
        ("choices", ["yes", "yet", 'a "quote"\\'], 'a "quote"', letters("\\")),
        ("json_schema", '{"enum": [1, "é"]}', '"', {0xC3}),
        ("json_schema", '{"const": null}', "nul", letters("l")),
        ("json_schema", "true", "1", letters(" \n\r\t0123456789.eE") | {EOS}),
    ],
)
def test_what_may_come_next(
    grammars: Grammars, kind: Kind, text: str | list[str], so_far: str, allowed: set[int]
) -> None:
    found = next_of(grammars.compile(kind, text), so_far)
    # White space after a whole JSON text may or may not be allowed.
    assert found - letters(" \n\r\t") == allowed - letters(" \n\r\t")


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("json_schema", "{", "is no JSON: .* at line 1, column 2"),
        ("json_schema", "[1]", "is no schema"),
        ("json_schema", "[" * 100_000, "is nested too deeply"),
        ("json_schema", '{"items":' * 900 + "{}" + "}" * 900, "is nested too deeply"),
        ("json_schema", '{"maximum": ' + "1" * 5000 + "}", "a number without end"),
        ("json_schema", '{"maximum": 1e999}', "a number without end"),
        ("json_schema", '{"properties": {"\\ud800": {}}}', "half of a surrogate pair"),
        ("json_schema", '{"type": "objekt"}', "Invalid type: objekt"),
        (
            "json_schema",
            '{"type": "object", "properties": {"a": {}, "b": {"items": {"type": "strin"}}}}',
            "at /properties/b/items: Invalid type",
        ),
        (
            "json_schema",
            '{"$defs": {"x/y": {"pattern": "(", "type": "string"}}, "$ref": "#/$defs/x~1y"}',
            "at /.defs/x~1y: regex parse error",
        ),
        ("json_schema", '{"$ref": "#/nowhere"}', "'/nowhere' does not exist"),
        ("json_schema", '{"anyOf": [{}, {"not": {}}]}', 'at /anyOf/1: Unimplemented keys: ."not".'),
        ("regex", "[a-z", "unclosed character class"),
        ("regex", "(?=a)", "look-ahead"),
        ("lark_grammar", "start: foo", "unknown name"),
        ("lark_grammar", "begin: /a/", "start"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    grammars: Grammars, kind: Kind, text: str, said: str
) -> None:
    with pytest.raises(GrammarError, match=said) as caught:
        grammars.compile(kind, text)
    assert "\n" not in str(caught.value)


def test_white_space_ends(grammars: Grammars) -> None:
    grammar = grammars.compile("json_schema", '{"type": "array"}')
    assert letters(" ") <= next_of(grammar, "[" + " " * 15)
    assert not letters(" \n\r\t") & next_of(grammar, "[" + " " * 16)


def test_a_string_ends(grammars: Grammars) -> None:
    grammar = grammars.compile("json_schema", '{"type": "string"}')
    assert len(next_of(grammar, '"' + "a" * (LONGEST_STRING - 1))) > 100
    assert next_of(grammar, '"' + "a" * LONGEST_STRING) == letters('"')


@pytest.mark.parametrize(
    ("schema", "added"),
    [
        ({"type": "string"}, LONGEST_STRING),
        ({"type": ["null", "string"]}, LONGEST_STRING),
        ({"type": "string", "minLength": 20_000}, 20_000),
        ({"type": "string", "maxLength": 3}, 3),
        ({"type": "string", "pattern": "a*"}, None),
        ({"type": "string", "enum": ["a"]}, None),
        ({"type": "integer"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("where", ["{}", '{{"items": {}}}', '{{"$defs": {{"a": {}}}}}'])
def test_only_strings_without_an_end_get_one(
    schema: dict[str, Any], added: int | None, where: str
) -> None:
    whole = json.loads(where.format(json.dumps(schema)))
    before = json.dumps(whole)
    wanted = schema if added is None else schema | {"maxLength": added}
    assert bounded(whole) == json.loads(where.format(json.dumps(wanted)))
    assert json.dumps(whole) == before


def test_the_innermost_wrong_part_is_found_without_its_siblings() -> None:
    schema = {"properties": {"a": {"allOf": [{"bad": 1}]}, "b": {"bad": 1}}}
    asked = []

    def problem(part: dict[str, Any]) -> str:
        asked.append(part["$ref"])
        place = part["$ref"].removeprefix("#/$defs/root")
        return "bad" if "/properties/b".startswith(place) else ""

    assert place_of_error(schema, problem) == "/properties/b"
    assert "#/$defs/root/properties/a" in asked


def test_a_large_schema_is_not_searched_for_long() -> None:
    """Each look at a place reads the whole schema."""
    many: dict[str, Any] = {f"p{i}": {"description": "x" * 1000} for i in range(1000)}
    asked = []

    def problem(part: dict[str, Any]) -> str:
        asked.append(part)
        return ""

    assert place_of_error({"properties": many}, problem) == ""
    assert len(asked) == 4
    assert place_of_error({"properties": {str(i): {} for i in range(1000)}}, problem) == ""
    assert len(asked) == 4 + 256


def test_what_was_compiled_is_kept_and_its_matchers_do_not_share(grammars: Grammars) -> None:
    grammar = grammars.compile("choices", ["ab", "cd"])
    assert grammars.compile("choices", ["ab", "cd"]) is grammar
    assert grammars.compile("choices", ["ab", "ce"]) is not grammar
    first, second = grammar.matcher(), grammar.matcher()
    first.take(ord("a"))
    allowed = np.ones(VOCABULARY, np.bool_)
    second.mark(allowed)
    assert set(np.flatnonzero(allowed)) == letters("ac")


def test_what_does_not_follow_is_an_error_and_stays_one(grammars: Grammars) -> None:
    matcher = grammars.compile("regex", "ab").matcher()
    allowed = np.ones(VOCABULARY, np.bool_)
    matcher.take(ord("x"))
    for _ in range(2):
        with pytest.raises(GrammarError, match="doesn't satisfy"):
            matcher.mark(allowed)
        matcher.take(ord("a"))


@settings(deadline=None)
@given(st.text(max_size=20))
def test_a_choice_is_itself_whatever_it_is(text: str) -> None:
    if not text:
        return
    grammar = _GRAMMARS.compile("choices", [text])
    assert EOS in next_of(grammar, text)


@given(st.text())
def test_no_text_is_a_schema_by_accident(text: str) -> None:
    try:
        schema = read_schema(text)
    except ValueError as error:
        assert str(error)  # noqa: PT017 - both ends are right
    else:
        assert isinstance(schema, dict)


_GRAMMARS = Grammars(byte_tokenizer())
