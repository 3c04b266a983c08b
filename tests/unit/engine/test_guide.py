"""Rows that may not draw everything: by a grammar, and by a budget for reasoning."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headrace.errors import InternalError, InvalidRequest
from headrace_runner.engine.text.engine import TextEngine
from headrace_runner.engine.text.guide import Guidance, Stretch
from headrace_runner.engine.text.request import Finish, Finished, GenerationRequest
from headrace_runner.engine.text.sampling import SamplingParams
from headrace_runner.models.grammar import Grammar, GrammarError, Grammars
from headrace_runner.models.tokenizer import Tokenizer
from tests.unit.engine.engines import a_step_ahead, read, request, running, tokens_of
from tests.unit.engine.tiny import EOS, GREEDY, VOCABULARY, loader

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "tags": {"type": "array", "items": {"enum": ["x", "yy"]}, "maxItems": 3},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "tags", "age"],
        "additionalProperties": False,
    }
)
HOT = SamplingParams(temperature=1.0, seed=5)
THINK, END_THINK, CALL, END_CALL = ord("<"), ord(">"), ord("{"), ord("}")
REASONING = Stretch(THINK, b">")
CALLS = Stretch(CALL, b"}")


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer)


@pytest.fixture(params=["on a CPU", "a step ahead"])
async def engine(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> AsyncIterator[TextEngine]:
    load = loader() if request.param == "on a CPU" else a_step_ahead(loader())
    async with running(tokenizer, load, max_rows=8) as engine:
        yield engine


@pytest.fixture
def schema(tokenizer: Tokenizer, grammars: Grammars) -> Guidance:
    return Guidance(tokenizer, grammars.compile("json_schema", SCHEMA))


def guided(guidance: Guidance | None, **fields: Any) -> GenerationRequest:
    options: dict[str, Any] = {"max_tokens": 400, "sampling": HOT, "guidance": guidance}
    made = request(**(options | fields))
    return replace(made, ignore_eos=False)


async def answer(engine: TextEngine, wanted: GenerationRequest, choice: int = 0) -> list[int]:
    return tokens_of(await read(engine.submit(wanted)), choice)


def text_of(tokens: list[int]) -> str:
    return bytes(token for token in tokens if token != EOS).decode()


async def test_every_answer_is_one_of_the_schema(engine: TextEngine, schema: Guidance) -> None:
    seeds = [guided(schema, sampling=replace(HOT, seed=seed)) for seed in range(8)]
    for tokens in await asyncio.gather(*(answer(engine, wanted) for wanted in seeds)):
        found = json.loads(text_of(tokens))
        assert set(found) == {"name", "tags", "age"}
        assert len(found["name"]) <= 6
        assert set(found["tags"]) <= {"x", "yy"}
        assert 0 <= found["age"] <= 120
        assert tokens[-1] == EOS


async def test_b5_a_guided_row_draws_alone_what_it_draws_among_others(
    engine: TextEngine, schema: Guidance
) -> None:
    """And those that are free draw what they draw without it."""
    free = [request(max_tokens=30, sampling=replace(HOT, seed=seed)) for seed in (1, 2)]
    wanted = [guided(schema), guided(schema, sampling=GREEDY), *free]
    alone = [await answer(engine, each) for each in wanted]
    together = await asyncio.gather(*(answer(engine, each) for each in wanted))
    assert list(together) == alone
    assert len(alone[2]) == len(alone[3]) == 30


async def test_choices_are_guided_each_by_itself(engine: TextEngine, schema: Guidance) -> None:
    events = await read(engine.submit(guided(schema, choices=3)))
    texts = {text_of(tokens_of(events, choice)) for choice in range(3)}
    assert len(texts) == 3
    assert all("age" in json.loads(text) for text in texts)


@pytest.mark.parametrize("sent", [1, 9, 20])
async def test_a_resumed_row_goes_on_within_its_grammar(
    engine: TextEngine, schema: Guidance, sent: int
) -> None:
    whole = await answer(engine, guided(schema))
    rest = await answer(engine, guided(schema, resume=(tuple(whole[:sent]),)))
    assert whole[:sent] + rest == whole


async def test_b6_a_grammar_that_fails_ends_its_row_and_no_other(
    engine: TextEngine, schema: Guidance
) -> None:
    others = [guided(schema), request(max_tokens=40, sampling=HOT)]
    undisturbed = [await answer(engine, each) for each in others]
    tasks = [asyncio.create_task(answer(engine, each)) for each in others]
    # What was sent before cannot have followed this grammar.
    with pytest.raises(InvalidRequest, match="constraint: could not be followed"):
        await answer(engine, guided(schema, resume=(tuple(b"[1, 2"),)))
    assert [await task for task in tasks] == undisturbed
    assert engine.active == 0


async def test_b6_a_guide_with_a_bug_ends_its_row_and_no_other(
    engine: TextEngine, schema: Guidance, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = request(max_tokens=40, sampling=HOT)
    undisturbed = await answer(engine, other)
    broken = schema.begin()
    monkeypatch.setattr(broken, "mark", lambda _: 1 / 0)
    monkeypatch.setattr(Guidance, "begin", lambda *_: broken)
    task = asyncio.create_task(answer(engine, other))
    with pytest.raises(InternalError):
        await answer(engine, guided(schema))
    assert await task == undisturbed
    assert engine.active == 0


async def test_what_is_likeliest_among_all_counts_for_nothing(
    engine: TextEngine, tokenizer: Tokenizer, grammars: Grammars
) -> None:
    guidance = Guidance(tokenizer, grammars.compile("regex", "[ab]{12}"))
    forced = replace(GREEDY, logit_bias=((ord("z"), 100.0), (ord("a"), 50.0)))
    events = await read(engine.submit(guided(guidance, sampling=forced)))
    assert tokens_of(events) == [*b"a" * 12, EOS]
    assert isinstance(events[-1], Finished)
    assert events[-1].choices[0].reason is Finish.END_OF_TEXT


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 3},
        {"top_p": 0.01},
        {"min_p": 0.9},
        {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"repetition_penalty": 1.9},
        {"temperature": 100.0},
    ],
    ids=str,
)
async def test_with_every_way_of_drawing(
    engine: TextEngine, tokenizer: Tokenizer, grammars: Grammars, options: dict[str, Any]
) -> None:
    guidance = Guidance(tokenizer, grammars.compile("regex", "[a-c]{5}(de|fg)+"))
    tokens = await answer(engine, guided(guidance, max_tokens=40, sampling=replace(HOT, **options)))
    assert re.fullmatch("[a-c]{5}(de|fg)*[df]?", text_of(tokens))


def marked(guidance: Guidance, text: str) -> set[int]:
    """What may come after a text, by a guide that began anew with it."""
    allowed = np.ones(VOCABULARY, np.bool_)
    guidance.begin(text.encode()).mark(allowed)
    return {int(token) for token in np.flatnonzero(allowed)}


ANYTHING = set(range(VOCABULARY))


@pytest.mark.parametrize(
    ("so_far", "allowed"),
    [
        ("", {ord("y"), THINK, CALL}),
        # No end before the answer, and no call that might be only spoken of.
        ("<", ANYTHING - {EOS, CALL}),
        ("<y no", ANYTHING - {EOS, CALL}),
        ("<hm>", {ord("y"), CALL}),
        ("<hm>y", {ord("e")}),
        ("ye", {ord("s")}),
        ("{f(x)", ANYTHING),
        ("<hm>{f(x)}", {ord("y"), CALL, EOS}),
        ("{f(x)}{g()}", {ord("y"), CALL, EOS}),
        ("{f(x)}yes", {EOS}),
    ],
)
def test_a_grammar_is_about_the_answer(
    tokenizer: Tokenizer, grammars: Grammars, so_far: str, allowed: set[int]
) -> None:
    grammar = grammars.compile("choices", ["yes"])
    guidance = Guidance(tokenizer, grammar, reasoning=REASONING, calls=CALLS)
    assert marked(guidance, so_far) == allowed


def test_reasoning_that_the_prompt_has_opened(tokenizer: Tokenizer, grammars: Grammars) -> None:
    grammar = grammars.compile("choices", ["yes"])
    guidance = Guidance(tokenizer, grammar, reasoning=Stretch(None, b"</t>"), in_reasoning=True)
    assert marked(guidance, "") == marked(guidance, "so </t") == ANYTHING - {EOS}
    assert marked(guidance, "so </t>") == {ord("y")}


@pytest.mark.parametrize(
    ("so_far", "allowed"),
    [
        ("abc", ANYTHING),
        ("abcd", {ord("<")}),
        ("abcd<", {ord("/")}),
        ("abcd</t", {ord(">")}),
        ("abcd</t>", ANYTHING),
        ("ab</t>cdefgh", ANYTHING),
    ],
)
def test_a_budget_closes_the_reasoning(
    tokenizer: Tokenizer, so_far: str, allowed: set[int]
) -> None:
    guidance = Guidance(tokenizer, reasoning=Stretch(None, b"</t>"), in_reasoning=True, budget=4)
    assert marked(guidance, so_far) == allowed


@pytest.mark.parametrize(
    ("so_far", "allowed"),
    [
        ("<ab", {END_THINK}),
        ("<ab>", ANYTHING),
        # What is spent is spent, wherever it is tried again.
        ("<ab>so<", {END_THINK}),
        ("<ab>so<>", ANYTHING),
        ("<a>so<b", {END_THINK}),
        # A call ends the reasoning that it stands in.
        ("<a{f(x, y)", ANYTHING),
    ],
)
def test_a_budget_is_for_all_reasoning(
    tokenizer: Tokenizer, so_far: str, allowed: set[int]
) -> None:
    assert (
        marked(Guidance(tokenizer, reasoning=REASONING, calls=CALLS, budget=2), so_far) == allowed
    )


async def test_reasoning_ends_in_time_and_the_answer_follows(
    engine: TextEngine, tokenizer: Tokenizer, grammars: Grammars
) -> None:
    grammar = grammars.compile("choices", ["yes", "no"])
    guidance = Guidance(
        tokenizer, grammar, reasoning=Stretch(None, b"</t>"), in_reasoning=True, budget=10
    )
    never = ((EOS, -100.0), (ord("<"), -100.0))
    tokens = await answer(engine, guided(guidance, sampling=replace(HOT, logit_bias=never)))
    assert bytes(tokens[10:-1]) in (b"</t>yes", b"</t>no")


@pytest.mark.parametrize("make", [lambda tokenizer: Stretch.between(tokenizer, "<", ">>")])
def test_a_mark_of_one_token_opens_and_any_text_closes(
    tokenizer: Tokenizer, make: Callable[[Tokenizer], Stretch]
) -> None:
    assert make(tokenizer) == Stretch(ord("<"), b">>")
    assert Stretch.between(tokenizer, "<<", ">").start is None


TOOLS: dict[str, dict[str, Any]] = {
    "add": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"$ref": "#/$defs/n"}},
        "required": ["a", "b"],
        "additionalProperties": False,
        "$defs": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    },
    "now": {"type": "object", "additionalProperties": False},
}
CALLED = '<\n{"name":"now","arguments":{}}'


@pytest.fixture
def forced(tokenizer: Tokenizer, grammars: Grammars) -> Guidance:
    calls = Stretch.between(tokenizer, "<", "</c>", grammars.calls(TOOLS))
    return Guidance(tokenizer, calls=calls, must_call=True)


@pytest.mark.parametrize(
    ("so_far", "allowed"),
    [
        ("", {THINK}),
        ("<", {ord("\n")}),
        ('<\n{"name":"', {ord("a"), ord("n")}),
        (CALLED, {ord("\n")}),
        (CALLED + "\n", {ord("<")}),
        (CALLED + "\n<", {ord("/")}),
        (CALLED + "\n</c", {ord(">")}),
        (CALLED + "\n</c>", {ord("<"), EOS}),
        (CALLED + "\n</c><", {ord("\n")}),
    ],
)
def test_a_call_that_has_to_come(forced: Guidance, so_far: str, allowed: set[int]) -> None:
    space = set(b" \r\t")
    assert marked(forced, so_far) - space == allowed - space


async def test_calls_are_made_with_arguments_of_their_schema(
    engine: TextEngine, forced: Guidance
) -> None:
    once = ((EOS, 100.0),)  # The end as soon as it may come: after one call.
    seeds = [replace(HOT, seed=seed, logit_bias=once) for seed in range(6)]
    made = await asyncio.gather(*(answer(engine, guided(forced, sampling=s)) for s in seeds))
    names = set()
    for tokens in made:
        text = text_of(tokens)
        assert text.startswith("<\n")
        assert text.endswith("\n</c>")
        call = json.loads(text[1:-4])
        names.add(call["name"])
        if call["name"] == "add":
            assert all(0 <= call["arguments"][key] <= 9 for key in ("a", "b"))
        else:
            assert call["arguments"] == {}
    assert names == {"add", "now"}


def test_reasoning_may_come_before_a_call(tokenizer: Tokenizer, grammars: Grammars) -> None:
    calls = Stretch.between(tokenizer, "<", "</c>", grammars.calls(TOOLS))
    guidance = Guidance(tokenizer, reasoning=Stretch(ord("("), b")"), calls=calls, must_call=True)
    assert marked(guidance, "") == {ord("("), ord("<")}
    assert marked(guidance, "(hm)") == {ord("<")}


def test_a_wrong_schema_is_said_with_its_tool(grammars: Grammars) -> None:
    wrong = {"properties": {"x": {"type": "nothing"}}}
    with pytest.raises(GrammarError, match="of bad: at /properties/x: Invalid type"):
        grammars.calls(TOOLS | {"bad": wrong})


SAY = {
    "type": "object",
    "properties": {"it": {"type": "string", "maxLength": 40}},
    "required": ["it"],
    "additionalProperties": False,
}


def calls_of(tokenizer: Tokenizer, body: Grammar) -> Stretch:
    return Stretch.between(tokenizer, "<", "</c>", body)


def test_the_mark_of_the_end_is_no_part_of_an_argument(
    tokenizer: Tokenizer, grammars: Grammars
) -> None:
    calls = calls_of(tokenizer, grammars.calls({"say": SAY}))
    guidance = Guidance(tokenizer, calls=calls, must_call=True)
    begun = '<\n{"name":"say","arguments":{"it":"a </c'
    assert ord(">") not in marked(guidance, begun)
    assert {ord("d"), ord('"')} <= marked(guidance, begun)
    assert ord(">") in marked(guidance, begun + "d")
    assert marked(guidance, begun + '"}}\n') == {ord("<")}


def test_an_argument_that_has_to_hold_the_mark_is_an_error(
    tokenizer: Tokenizer, grammars: Grammars
) -> None:
    schema = SAY | {"properties": {"it": {"const": "</c>"}}}
    guidance = Guidance(tokenizer, calls=calls_of(tokenizer, grammars.calls({"say": schema})))
    with pytest.raises(GrammarError, match="cannot stand within it"):
        marked(guidance, '<\n{"name":"say","arguments":{"it":"</c')


@pytest.mark.parametrize("before", ["", "Let me see.\n", "(hm", "(hm)\n\n"])
def test_a_call_is_held_to_its_form_wherever_it_comes(
    tokenizer: Tokenizer, grammars: Grammars, before: str
) -> None:
    calls = calls_of(tokenizer, grammars.calls(TOOLS))
    guidance = Guidance(tokenizer, reasoning=Stretch(ord("("), b")"), calls=calls)
    assert marked(guidance, before) == ANYTHING
    assert marked(guidance, before + '<\n{"name":"') == {ord("a"), ord("n")}
    assert marked(guidance, before + CALLED + "\n</c>") == ANYTHING


def test_no_end_comes_before_a_call_that_has_to(tokenizer: Tokenizer, grammars: Grammars) -> None:
    calls = calls_of(tokenizer, grammars.calls(TOOLS))
    guidance = Guidance(tokenizer, reasoning=Stretch(ord("("), b")"), calls=calls, must_call=True)
    assert marked(guidance, "(hm") == ANYTHING - {EOS}
    assert marked(guidance, "(hm" + CALLED + "\n</c>") == {ord("<"), EOS}
