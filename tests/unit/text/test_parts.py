"""Reasoning and tool calls leave the text wherever it is cut, and nothing is ever lost."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_runner.engine.text.calls import join
from headrace_runner.engine.text.parts import Markup, Parts, Splitter, ToolCallPart
from tests.unit.text.families import REASONING, THINK, TOOLS

# A call is a digit: as many calls as it says, and 0 is malformed.
TOY = Markup(
    reasoning_start="<r>",
    reasoning_end="</r>",
    call_start="<c>",
    call_end="</c>",
    parse=lambda text: [{"name": f"f{i}", "arguments": {}} for i in range(int(text))],
    dropped=("<d>",),
)
# Markers that begin like each other and like themselves, a newline for an end, and no end.
TANGLED = replace(
    TOY,
    reasoning_start="aab",
    reasoning_end="aac",
    call_start="aa1",
    call_end="1a",
    dropped=("ab",),
)
TOYS = [
    TOY,
    TANGLED,
    replace(TOY, call_end="\n"),
    replace(TOY, call_end=""),
    replace(TOY, in_reasoning=True),
    replace(TOY, reasoning_start="", reasoning_end=""),
    replace(TOY, parse=None),
    Markup(),
]
PIECES = ["<r>", "</r>", "<c>", "</c>", "<d>", "<", "/", "c>", "1", "2", "0", " ", "a", "b", "\n"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
CUTS = st.lists(st.integers(0, 10_000), max_size=8)


def markup(family: str) -> Markup:
    """As a model of that family has it, with reasoning."""
    start, end = REASONING.get(family, THINK)
    module: Any = importlib.import_module(f"mlx_lm.tool_parsers.{family}")
    return Markup(
        reasoning_start=start,
        reasoning_end=end,
        call_start=module.tool_call_start,
        call_end=module.tool_call_end,
        parse=lambda text: module.parse_tool_call(text, TOOLS),
    )


def split(markup: Markup, pieces: Iterable[str], *, cut: bool = False) -> Parts:
    """All that comes of the pieces."""
    splitter = Splitter(markup)
    found = [splitter.push(piece) for piece in pieces]
    found.append(splitter.finish(cut=cut))
    assert splitter.held == 0
    whole = Parts("".join(part.text for part in found), "".join(part.reasoning for part in found))
    for part in found:
        join(whole.tool_calls, part.tool_calls)
    assert splitter.calls == len(whole.tool_calls)
    assert [call.index for call in whole.tool_calls] == list(range(splitter.calls))
    return whole


def cut_at(text: str, cuts: Iterable[int]) -> list[str]:
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(borders)]


class Told:
    """The rules, told the slow way: over the whole text, always looking for the next marker."""

    def __init__(self, markup: Markup, *, cut: bool) -> None:
        self.markup, self.cut = markup, cut
        self.reasoning = markup.in_reasoning
        self.parts = Parts()

    def read(self, text: str, *, with_calls: bool = True) -> Parts:
        markup = self.markup
        around = [markup.reasoning_start, *markup.dropped]
        markers = [markup.reasoning_end] if self.reasoning else around
        markers += [markup.call_start] if with_calls and markup.parse else []
        before, marker, after = next_marker(text, markers)
        if self.reasoning:
            self.parts.reasoning += before
        else:
            self.parts.text += before
        if marker is None:
            return self.parts
        if marker == markup.call_start and with_calls:
            body, end, after = next_marker(after, [markup.call_end])
            if end is None and self.cut:
                self.read(marker + body, with_calls=False)
            elif not self.call(body):
                self.failed(body, end or "")
        elif marker not in markup.dropped:
            self.reasoning = not self.reasoning
        return self.read(after, with_calls=with_calls)

    def failed(self, body: str, end: str) -> None:
        start = self.markup.call_start
        first, again, last = body.rpartition(start)
        if again:
            self.read(start + first, with_calls=False)
            body = last
            if self.call(last):
                return
        self.read(start + body + end, with_calls=False)

    def call(self, body: str) -> bool:
        assert self.markup.parse
        try:
            found: Any = self.markup.parse(body.strip())
        except ValueError:
            return False
        for call in found:
            index = len(self.parts.tool_calls)
            self.parts.tool_calls.append(ToolCallPart(index, "{}", None, call["name"]))
            self.reasoning = False
        return bool(found)


def next_marker(text: str, markers: list[str]) -> tuple[str, str | None, str]:
    for end in range(1, len(text) + 1):
        if ending := [m for m in markers if m and text[:end].endswith(m)]:
            marker = max(ending, key=len)
            return text[: end - len(marker)], marker, text[end:]
    return text, None, ""


@given(TEXT, CUTS, st.sampled_from(TOYS), st.booleans())
def test_any_cut_gives_what_the_rules_tell(
    text: str, cuts: list[int], markup: Markup, cut: bool
) -> None:
    expected = Told(markup, cut=cut).read(text)
    assert split(markup, [text], cut=cut) == expected
    assert split(markup, cut_at(text, cuts), cut=cut) == expected
    assert split(markup, text, cut=cut) == expected


@given(TEXT, CUTS, st.booleans())
def test_nothing_of_what_is_no_call_is_lost(text: str, cuts: list[int], cut: bool) -> None:
    def fails(text: str) -> object:
        raise RecursionError

    markup = Markup(call_start="<c>", call_end="</c>", parse=fails)
    assert split(markup, cut_at(text, cuts), cut=cut) == Parts(text)


def test_text_is_never_held_back_longer_than_it_could_be_a_marker() -> None:
    splitter = Splitter(TOY)
    assert splitter.push("a <").text == "a "
    assert splitter.held == 1
    assert splitter.push("b").text == "<b"
    assert splitter.held == 0
    assert splitter.push("x<c>1</").text == "x"
    assert (splitter.held, splitter.in_call) == (len("<c>1</"), True)
    assert [call.name for call in splitter.push("c>").tool_calls] == ["f0"]
    assert (splitter.held, splitter.in_call) == (0, False)


def test_a_mention_of_a_call_in_the_reasoning_hides_neither_its_end_nor_the_call() -> None:
    text = '<think>I write <tool_call> now.</think>So:<tool_call>{"name": "f"}</tool_call>!'
    parts = split(markup("json_tools"), text)
    assert (parts.reasoning, parts.text) == ("I write <tool_call> now.", "So:!")
    assert [call.name for call in parts.tool_calls] == ["f"]
    empty = split(markup("json_tools"), "<think>the <tool_call></tool_call> tags</think>Yes")
    assert empty == Parts("Yes", "the <tool_call></tool_call> tags")


def test_a_call_ends_the_reasoning_that_it_stands_in() -> None:
    parts = split(TOY, "<r>so <c>1</c> on")
    assert (parts.text, parts.reasoning, len(parts.tool_calls)) == (" on", "so ", 1)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "[]",
        '"f"',
        '{"arguments": {}}',
        '{"name": ""}',
        '{"name": 1}',
        '{"name": "two words"}',
        '{"name": "' + "f" * 257 + '"}',
        '{"name": "\\ud800"}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "1"}',
        '{"name": "f", "arguments": "{"}',
        '{"name": "f", "arguments": {"x": NaN}}',
        '[{"name": "f"}, {}]',
        "[" * 100_000,
    ],
)
def test_what_is_malformed_is_text(body: str) -> None:
    text = f"<tool_call>{body}</tool_call>."
    assert split(markup("json_tools"), [text]) == Parts(text)


def test_a_parser_that_takes_anything_for_a_call_is_not_asked_about_nothing() -> None:
    text = "The <tool_call> </tool_call> tags"
    assert split(markup("glm47"), text) == Parts(text)


def test_white_space_around_a_call_does_not_matter() -> None:
    text = "<tool_call>\n\n<function=get_time>\n</function>\n\n\n</tool_call>"
    assert [call.name for call in split(markup("qwen3_coder"), text).tool_calls] == ["get_time"]


def test_arguments_are_json_that_can_be_sent() -> None:
    body = '{"name": "f", "id": "", "arguments": {"ü": "日", "half": "\\ud800", "n": 1e400}}'
    assert split(markup("json_tools"), [f"<tool_call>{body}</tool_call>"]).tool_calls == []
    body = body.replace(', "n": 1e400', "")
    (call,) = split(markup("json_tools"), [f"<tool_call>{body}</tool_call>"]).tool_calls
    assert call.id is None
    assert call.arguments.encode()
    assert json.loads(call.arguments) == {"ü": "日", "half": "\ud800"}
    (call,) = split(TOY, ["<c>1</c>"]).tool_calls
    assert call == ToolCallPart(0, "{}", None, "f0")


def test_many_false_beginnings_take_linear_time() -> None:
    text = "<c>" * 50_000 + "</c>"
    assert split(TOY, [text]) == Parts(text)
    assert split(TOY, [text[i : i + 3] for i in range(0, len(text), 3)]) == Parts(text)
    text = "<c>" + "<d>a<r>b</r>" * 50_000
    assert split(TOY, [text]) == Parts("<c>" + "a" * 50_000, "b" * 50_000)
