"""A call that is a JSON object leaves while it is written, and what left of it always stands."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_runner.engine.text.calls import JsonCall, ToolCallPart, join
from headrace_runner.engine.text.parts import Markup, Parts, Splitter
from headrace_runner.models.markup import ModelMarkup
from tests.unit.text.test_parts import CUTS, cut_at, split

WHOLE = Markup(
    reasoning_start="<think>",
    reasoning_end="</think>",
    call_start="<tool_call>",
    call_end="</tool_call>",
    parse=json.loads,
)
MARKUP = replace(WHOLE, offered=frozenset({"f", "write", "ü日"}))

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=6), VALUES, max_size=4)
STYLES = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 1]),
        "separators": st.sampled_from([None, (",", ":"), (" , ", " : ")]),
    }
)
PIECES = [
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    '{"name": "f", "arguments": {',
    '{"name": "g", "arguments": {',
    '"name"',
    '"arguments": {',
    '"a": "',
    '"',
    "\\",
    "{",
    "}",
    "}}",
    "[",
    "]",
    ": 1",
    ",",
    "<",
    "</tool",
    "\n",
    "x",
]
JUNK = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)


def call(arguments: str, name: str = "f", *, end: str = "}\n") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}{end}</tool_call>'


def named(parts: Parts) -> list[tuple[str | None, str]]:
    return [(part.name, part.arguments) for part in parts.tool_calls]


def test_a_call_leaves_as_it_is_written() -> None:
    splitter = Splitter(MARKUP)
    assert splitter.push('So <tool_call>\n{"name": "f", "arguments": ') == Parts("So ")
    assert splitter.in_call
    assert splitter.push('{"a"').tool_calls == [ToolCallPart(0, '{"a"', None, "f")]
    assert (splitter.held, splitter.in_call, splitter.calls) == (0, False, 1)
    assert splitter.push(': "}').tool_calls == [ToolCallPart(0, ': "}')]
    assert splitter.push('"}').tool_calls == [ToolCallPart(0, '"}')]
    assert splitter.push("}\n</tool") == Parts()
    assert splitter.held == len("}\n</tool")
    assert splitter.push("_call>!") == Parts("!")
    assert splitter.finish() == Parts()


@given(OBJECTS, STYLES, st.sampled_from(["f", "ü日"]), st.booleans(), CUTS)
def test_the_parts_are_the_models_own_text(
    value: dict[str, Any], style: dict[str, Any], name: str, twice: bool, cuts: list[int]
) -> None:
    own = json.dumps(value, **style)
    whole = json.dumps({"id": "i", "name": name, "arguments": "@"}, **style)
    one = "<tool_call>" + whole.replace('"@"', own) + "</tool_call>"
    found = split(MARKUP, cut_at(f"<think>a</think>b{one}{one if twice else ''}c", cuts))
    expected = [ToolCallPart(index, own, "i", name) for index in range(1 + twice)]
    assert found == Parts("bc", "a", expected)


@given(JUNK, CUTS, st.booleans())
def test_any_cut_gives_the_same(text: str, cuts: list[int], cut: bool) -> None:
    whole = split(MARKUP, [text], cut=cut)
    assert split(MARKUP, cut_at(text, cuts), cut=cut) == whole
    assert split(MARKUP, text, cut=cut) == whole


@given(JUNK)
def test_what_has_left_stands(text: str) -> None:
    """What a beginning gives is the beginning of what the whole gives."""
    splitter, before = Splitter(MARKUP), Parts()
    for character in text:
        parts = splitter.push(character)
        before.text += parts.text
        before.reasoning += parts.reasoning
        join(before.tool_calls, parts.tool_calls)
    whole = split(MARKUP, [text])
    assert whole.text.startswith(before.text)
    assert whole.reasoning.startswith(before.reasoning)
    pairs = list(zip(before.tool_calls, whole.tool_calls, strict=False))
    assert len(pairs) == len(before.tool_calls)
    for early, late in pairs:
        assert (early.index, early.id, early.name) == (late.index, late.id, late.name)
        assert late.arguments.startswith(early.arguments)


@given(JUNK, st.booleans())
def test_what_begins_no_call_on_offer_is_what_it_was(text: str, cut: bool) -> None:
    markup = replace(WHOLE, offered=frozenset[str]())
    assert split(markup, text, cut=cut) == split(WHOLE, text, cut=cut)


@pytest.mark.parametrize(
    ("text", "calls", "left"),
    [
        # Whole, for all that is missing or comes behind.
        (call('{"a": 1}', end=""), [("f", '{"a": 1}')], ""),
        (call("{}", end=', "id": "late", "x": [{}]}'), [("f", "{}")], ""),
        (call("{}", end="} so"), [("f", "{}")], "} so"),
        (call("{}", end=', "name": "g"}'), [("f", "{}")], ', "name": "g"}'),
        (call("{}") + call('{"b": {}}', "write"), [("f", "{}"), ("write", '{"b": {}}')], ""),
        # Its own mistakes are told as they are.
        (call('{"a": tru}'), [("f", '{"a": tru}')], ""),
        (call('{"a": [1}'), [("f", '{"a": [1}}')], ""),
        (call('{"a": [[1}'), [("f", '{"a": [[1}}\n')], ""),
        (call('{"a": "'), [("f", '{"a": "}\n')], ""),
        # Markers in a string are none but for the end; elsewhere another call begins.
        (call('{"a": "<tool_call>"}'), [("f", '{"a": "<tool_call>"}')], ""),
        (call('{"a": "\\"<tool_call>"}'), [("f", '{"a": "\\"<tool_call>"}')], ""),
        (call('{"a": "</tool_call>"}'), [("f", '{"a": "')], '"}}\n</tool_call>'),
        (call('{"a":', end="")[:-12] + call("{}"), [("f", '{"a":'), ("f", "{}")], ""),
        (call("{}", end="")[:-12] + call("{}"), [("f", "{}"), ("f", "{}")], ""),
        # What is not known to be one that is on offer waits for the end.
        (call('{"a": 1}', "g"), [("g", '{"a": 1}')], ""),
        (call('{"a":1}', "two words"), [], call('{"a":1}', "two words")),
        (call('"{\\"a\\":1}"'), [("f", '{"a": 1}')], ""),
        ('<tool_call>{"arguments": {"a":1}, "name": "f"}</tool_call>', [("f", '{"a": 1}')], ""),
        ('<tool_call>[{"name": "f", "arguments": {}}]</tool_call>', [("f", "{}")], ""),
        ('<tool_call>{"name": "f"}</tool_call>', [("f", "{}")], ""),
        (call('{"a":1}').replace("gum", "g\\u0075m"), [("f", '{"a": 1}')], ""),
        ('<tool_call>{"x": {"name": "f", "arguments": {}}}</tool_call>', [], None),
        ('<tool_call>{"name": ["f"], "arguments": {}}</tool_call>', [], None),
        ('<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>', [], None),
        ('<tool_call>{f: "name", "arguments": {}}</tool_call>', [], None),
        ("<tool_call>" + "[" * 9999 + "</tool_call>", [], None),
    ],
)  # fmt: skip
def test_what_models_make_of_it(text: str, calls: list[tuple[str, str]], left: str | None) -> None:
    found = split(MARKUP, [text])
    assert named(found) == calls
    assert found.text == (text if left is None else left)
    assert split(MARKUP, text) == found


def test_the_name_is_the_one_that_json_reads() -> None:
    head = '<tool_call>{"name": "g", "id": 3, "n\\u0061me": "\\u0066", "arguments": {'
    assert Splitter(MARKUP).push(head).tool_calls == [ToolCallPart(0, "{", None, "f")]


def test_a_call_is_cut_anywhere() -> None:
    text = call('{"a": "é\\n", "b": {"c": [1, {}]}}')
    first, last = text.index('{"a"'), text.index("}\n</tool_call>")
    for place in range(len("<tool_call>"), len(text) - 1):
        found = split(MARKUP, [text[:place]], cut=True)
        if place <= first:
            assert found == Parts(text[:place])
            continue
        assert found == Parts(
            tool_calls=[ToolCallPart(0, text[first : min(place, last)], None, "f")]
        )
        if place < last:
            with pytest.raises(ValueError, match=r"\(char \d+\)"):
                json.loads(found.tool_calls[0].arguments)
        else:
            json.loads(found.tool_calls[0].arguments)


def test_a_call_that_leaves_ends_the_reasoning() -> None:
    splitter = Splitter(MARKUP)
    splitter.push('<think>hm <tool_call>{"name": "f", "arguments": {')
    assert splitter.push("}}</tool_call>so").text == "so"


def test_a_long_head_is_not_looked_at() -> None:
    text = '<tool_call>{"x": "' + "x" * 5000 + '", "name": "f", "arguments": {"a":1}}</tool_call>'
    reader = JsonCall(frozenset({"f"}))
    assert reader.push(text.removeprefix("<tool_call>"))[0] == ""
    assert named(split(MARKUP, text)) == [("f", '{"a": 1}')]
    assert split(MARKUP, [text]) == split(MARKUP, text)


def test_long_arguments_take_linear_time() -> None:
    own = json.dumps({"text": 'a "quoted" <tool_call> \\ line\n' * 2_000, "n": [[{}]] * 2_000})
    assert named(split(MARKUP, [call(own)])) == [("f", own)]
    pieces = cut_at(call(own), range(0, len(own), 7))
    assert named(split(MARKUP, pieces)) == [("f", own)]
    broken = '<tool_call>{"arguments": {}, ' + '"arguments": {}, ' * 5_000
    assert split(MARKUP, cut_at(broken, range(0, len(broken), 7))) == Parts(broken)


def test_pieces_of_one_call_are_joined() -> None:
    parts = [ToolCallPart(0, "{", "i", "f")]
    join(parts, [ToolCallPart(0, '"a"'), ToolCallPart(0, ": 1}"), ToolCallPart(1, "{", "j", "g")])
    join(parts, [ToolCallPart(1, "}")])
    assert parts == [ToolCallPart(0, '{"a": 1}', "i", "f"), ToolCallPart(1, "{}", "j", "g")]


def test_a_model_whose_calls_are_json_offers_its_tools_by_name() -> None:
    model = ModelMarkup(call_start="<c>", call_end="</c>", parser=lambda text, _: text)
    tools = [{"type": "function", "function": {"name": "f"}}]

    def offered(model: ModelMarkup, tools: Any) -> frozenset[str] | None:
        return model.of_request(tools=tools, reasoning_apart=True, prompt_end="").offered

    assert offered(model, tools) is None
    assert offered(replace(model, json_calls=True), tools) == frozenset({"f"})
    assert offered(replace(model, json_calls=True), None) is None
