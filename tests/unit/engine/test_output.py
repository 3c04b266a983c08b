"""Tokens become the parts of an answer, the end is found where it is, and a resumed output goes
on exactly where it was."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from headrace_runner.engine.text.calls import ToolCallPart
from headrace_runner.engine.text.logprobs import Logprobs
from headrace_runner.engine.text.output import Output
from headrace_runner.engine.text.parts import Markup
from headrace_runner.engine.text.request import ChoiceEnd, Delta, Finish, GenerationRequest
from headrace_runner.models.tokenizer import Tokenizer
from tests.unit.engine.tiny import EOS, bytes_of

NO_TEXT = 258

# Tokens of any size: borders within characters, stops and markers, and several of them in one.
PIECES = [
    b"a",
    b"b",
    b"-",
    b"\n",
    b"1",
    b"ab",
    b"a<",
    b"---",
    "é".encode(),
    b"\xe3\x81",
    b"\x93\xe3",
    b"\x82\x93",
    b"\xff",
    b"<",
    b"r>",
    b"</r>",
    b"c>1",
    b"c>",
    b"</c>",
    b"</c>\n<c>2</",
    b"EN",
    b"D.",
    b'{"name": "f", "arguments": ',
    b'{"',
    b'"',
    b"}",
]
CALL, MUTE, END = len(PIECES), len(PIECES) + 1, len(PIECES) + 2
"""Special tokens: a marker, one that is none, and the end of the text."""

MARKUP = Markup(
    reasoning_start="<r>",
    reasoning_end="</r>",
    call_start="<c>",
    call_end="</c>",
    parse=lambda text: [{"name": f"f{i}"} for i in range(int(text))],
    special_ids=frozenset([CALL]),
)
IN_PARTS = replace(MARKUP, parse=json.loads, offered=frozenset({"f"}))
REQUESTS = st.builds(
    GenerationRequest,
    id=st.just("r"),
    prompt=st.just([1]),
    max_tokens=st.integers(1, 40),
    stop_strings=st.sampled_from([(), ("END",), ("--\n", "ab<"), ("<c>1<",), ("\n\n",)]),
    stop_token_ids=st.sampled_from([frozenset[int](), frozenset([MUTE])]),
    ignore_eos=st.booleans(),
    include_stop=st.booleans(),
    markup=st.sampled_from(
        [
            Markup(),
            MARKUP,
            IN_PARTS,
            replace(MARKUP, in_reasoning=True),
            replace(MARKUP, call_end=""),
        ]
    ),
)
CALLS = [[CALL, PIECES.index(b'{"name": "f", "arguments": '), PIECES.index(b'{"')]]
TOKENS = st.lists(
    st.integers(0, END).map(lambda token: [token]) | st.sampled_from(CALLS), max_size=40
).map(lambda runs: [token for run in runs for token in run])


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    letters = {bytes_of(letter): letter for letter in pre_tokenizers.ByteLevel.alphabet()}
    names = ["".join(letters[bytes([byte])] for byte in piece) for piece in PIECES]
    backend = RustTokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        # The marker is a special token too, as in many models.
        [AddedToken(name, normalized=False) for name in ("<c>", "<mute>", "<eos>")]
    )
    return Tokenizer(backend, tokenizer_config={"eos_token": "<eos>"})


@dataclass
class Run:
    """What came of tokens, up to the end."""

    deltas: list[Delta] = field(default_factory=list)
    end: ChoiceEnd | None = None

    @property
    def sum(self) -> Delta:
        whole = Delta()
        for delta in self.deltas:
            whole.append(delta)
        return whole

    @property
    def text(self) -> str:
        return self.sum.text

    @property
    def finish(self) -> tuple[Finish, str | int | None] | None:
        return None if self.end is None else (self.end.reason, self.end.matched)


def go_on(output: Output, tokens: bytes | list[int]) -> Run:
    run = Run()
    for token in tokens:
        delta, run.end = output.push(token)
        if delta is not None:
            run.deltas.append(delta)
        if run.end is not None:
            assert delta is not None
            assert run.end.output_tokens == delta.output_tokens == output.tokens
            break
    return run


def run(tokenizer: Tokenizer, tokens: bytes | list[int], **options: object) -> Run:
    given: dict[str, object] = {"id": "r", "prompt": [1], "max_tokens": 1000} | options
    return go_on(Output(GenerationRequest(**given), tokenizer), tokens)  # type: ignore[arg-type]


def sent(result: Run) -> list[tuple[str, bytes]]:
    """The text of each delta, and its tokens as bytes."""
    return [(delta.text, bytes(delta.token_ids)) for delta in result.deltas]


def test_b3_text_leaves_as_whole_characters(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"\xe3\x81\x93\xe3\x82\x93!")
    assert sent(result) == [("こ", b"\xe3\x81\x93"), ("ん", b"\xe3\x82\x93"), ("!", b"!")]
    assert [delta.output_tokens for delta in result.deltas] == [3, 6, 7]
    assert result.end is None


def test_b3_tokens_that_share_characters(pieces: Tokenizer) -> None:
    tokens = [PIECES.index(piece) for piece in (b"\xe3\x81", b"\x93\xe3", b"\x82\x93")]
    result = run(pieces, tokens)
    assert [(d.text, d.token_ids) for d in result.deltas] == [
        ("こ", tokens[:2]),
        ("ん", tokens[2:]),
    ]


def test_b3_a_character_that_the_limit_cuts_is_replaced(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"a\xe3\x81\x93", max_tokens=3)
    assert sent(result) == [("a", b"a"), ("\ufffd", b"\xe3\x81")]
    assert result.finish == (Finish.LENGTH, None)


def test_b4_a_stop_over_three_tokens_is_not_emitted(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"one END two", stop_strings=("END",))
    assert sent(result) == [("o", b"o"), ("n", b"n"), ("e", b"e"), (" ", b" "), ("", b"END")]
    assert result.finish == (Finish.STOP, "END")


def test_b4_text_that_only_began_like_a_stop_is_emitted(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"an ENd", stop_strings=("END",))
    assert sent(result) == [("a", b"a"), ("n", b"n"), (" ", b" "), ("ENd", b"ENd")]
    assert result.end is None


def test_b4_what_is_held_back_leaves_with_the_end(tokenizer: Tokenizer) -> None:
    held = run(tokenizer, b"an EN", stop_strings=("END",), max_tokens=5)
    assert (held.text, held.finish) == ("an EN", (Finish.LENGTH, None))
    ended = run(tokenizer, [*b"an EN", EOS], stop_strings=("END",))
    assert (ended.text, ended.finish) == ("an EN", (Finish.END_OF_TEXT, EOS))
    assert ended.deltas[-1].token_ids == [*b"EN", EOS]


def test_a_stop_that_the_last_token_completes_wins_over_the_length(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"an END", stop_strings=("END",), max_tokens=6)
    assert (result.text, result.finish) == ("an ", (Finish.STOP, "END"))


def test_a_stop_token_wins_over_the_length(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"ab", stop_token_ids=frozenset(b"b"), max_tokens=2)
    assert (result.text, result.finish) == ("a", (Finish.STOP, ord("b")))
    ended = run(tokenizer, [*b"a", EOS], max_tokens=2)
    assert (ended.text, ended.finish) == ("a", (Finish.END_OF_TEXT, EOS))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stop_strings": ("END",)}, "an END"),
        ({"stop_token_ids": frozenset(b"D")}, "an END"),
        ({"stop_token_ids": frozenset([NO_TEXT])}, "an END."),
    ],
)
def test_include_stop_emits_what_stopped(
    tokenizer: Tokenizer, options: dict[str, object], text: str
) -> None:
    tokens = [*b"an END.", NO_TEXT]
    assert run(tokenizer, tokens, include_stop=True, **options).text == text


def test_the_end_of_text_is_never_text(tokenizer: Tokenizer) -> None:
    assert run(tokenizer, [*b"a", EOS], include_stop=True).text == "a"


def test_ignore_eos_goes_on_past_it(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, [*b"a", EOS, *b"b"], ignore_eos=True, max_tokens=3)
    assert (result.text, result.finish) == ("ab", (Finish.LENGTH, None))
    stopped = run(tokenizer, [*b"a", EOS, *b"b"], ignore_eos=True, stop_token_ids=frozenset([EOS]))
    assert (stopped.text, stopped.finish) == ("a", (Finish.STOP, EOS))


def test_the_first_of_several_stops_counts(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"aXbYc", stop_strings=("Yc", "b", "zzz"))
    assert (result.text, result.finish) == ("aX", (Finish.STOP, "b"))


def test_logprobs_go_with_their_token(tokenizer: Tokenizer) -> None:
    request = GenerationRequest(id="r", prompt=[1], max_tokens=9, stop_strings=("ab",))
    output = Output(request, tokenizer)
    first, second = Logprobs(-0.5, ((97, -0.5),)), Logprobs(-1.5, ())
    assert output.push(97, first) == (None, None)
    delta, _ = output.push(99, second)
    assert delta == Delta(0, "ac", token_ids=[97, 99], logprobs=[first, second], output_tokens=2)


def test_tokens_without_text_wait_for_none(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, [NO_TEXT, *b"aE", NO_TEXT, *b"b"], stop_strings=("END",))
    assert [d.token_ids for d in result.deltas] == [[NO_TEXT], [97], [69, NO_TEXT, 98]]


def test_a_run_that_always_begins_a_stop_does_not_silence_the_stream(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"-" * 100, stop_strings=("--x",))
    assert [len(delta.token_ids) for delta in result.deltas] == [16] * 6
    assert result.text == "-" * (16 * 6 - 2)


def test_parts_leave_apart(tokenizer: Tokenizer) -> None:
    text = b"<r>why</r>so <c>2</c>"
    result = run(tokenizer, [*text, EOS], markup=MARKUP)
    whole = result.sum
    assert (whole.text, whole.reasoning) == ("so ", "why")
    assert [(call.index, call.name) for call in whole.tool_calls] == [(0, "f0"), (1, "f1")]
    assert result.finish == (Finish.TOOL_CALLS, None)
    assert [(d.reasoning, bytes(d.token_ids)) for d in result.deltas[:2]] == [
        ("", b"<r>"),
        ("w", b"w"),
    ]
    # The tokens of the calls come with them.
    (calls,) = [delta for delta in result.deltas if delta.tool_calls]
    assert bytes(calls.token_ids) == b"<c>2</c>"


@pytest.mark.parametrize(
    ("tokens", "options", "finish"),
    [
        ([*b"<c>1</c>"], {"max_tokens": 8}, (Finish.LENGTH, None)),
        ([*b"<c>1</c>#"], {"stop_strings": ("#",)}, (Finish.STOP, "#")),
        ([*b"<c>1</c>#"], {"stop_token_ids": frozenset(b"#")}, (Finish.STOP, ord("#"))),
        ([*b"<c>1</c>", EOS], {}, (Finish.TOOL_CALLS, None)),
        ([*b"<c>1", EOS], {}, (Finish.TOOL_CALLS, None)),
        ([*b"<c>0</c>", EOS], {}, (Finish.END_OF_TEXT, EOS)),
    ],
)
def test_calls_are_the_reason_only_where_the_model_ended(
    tokenizer: Tokenizer,
    tokens: list[int],
    options: dict[str, object],
    finish: tuple[Finish, str | int | None],
) -> None:
    assert run(tokenizer, tokens, markup=MARKUP, **options).finish == finish


def test_a_call_that_the_end_cuts_is_text(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"x<c>1", markup=MARKUP, max_tokens=5)
    assert (result.text, result.sum.tool_calls) == ("x<c>1", [])
    stopped = run(tokenizer, b"x<c>1#", markup=MARKUP, stop_strings=("#",))
    assert (stopped.text, stopped.sum.tool_calls) == ("x<c>1", [])


def test_no_token_of_a_call_leaves_before_it(pieces: Tokenizer) -> None:
    newline, end = PIECES.index(b"\n"), PIECES.index(b"</c>")
    blanks = [PIECES.index(b"\n")] * 20
    tokens = [newline, CALL, *blanks, PIECES.index(b"1"), end]
    result = run(pieces, tokens, markup=MARKUP, stop_strings=("\n#",))
    assert [(d.text, d.token_ids) for d in result.deltas] == [("\n", tokens)]


def test_a_call_in_parts_leaves_with_its_tokens(tokenizer: Tokenizer) -> None:
    text = b'<c>{"name": "f", "arguments": {"a": "\xc3\xa9"}}</c>'
    result = run(tokenizer, [*text, EOS], markup=IN_PARTS)
    head, *parts = [delta for delta in result.deltas if delta.tool_calls]
    begin = text.index(b'{"a"')
    assert bytes(head.token_ids) == text[: begin + 1]
    (first,) = head.tool_calls
    assert (first.index, first.arguments, first.name) == (0, "{", "f")
    assert [d.tool_calls for d in parts] == [
        [ToolCallPart(0, character)] for character in '"a": "é"}'
    ]
    assert [bytes(d.token_ids) for d in parts] == [c.encode() for c in '"a": "é"}']
    (whole,) = result.sum.tool_calls
    assert whole == ToolCallPart(0, '{"a": "é"}', first.id, "f")
    assert (result.text, result.finish) == ("", (Finish.TOOL_CALLS, None))


@pytest.mark.parametrize(
    ("end", "options", "finish"),
    [
        (b"1", {"max_tokens": 36}, (Finish.LENGTH, None)),
        (b"1#", {"stop_strings": ("#",)}, (Finish.STOP, "#")),
        (b"1#", {"stop_token_ids": frozenset(b"#")}, (Finish.STOP, ord("#"))),
        # The model has ended it by itself: the mistake is its own.
        ([ord("1"), EOS], {}, (Finish.TOOL_CALLS, None)),
    ],
)
def test_a_call_in_parts_that_the_end_cuts_is_what_it_is(
    tokenizer: Tokenizer,
    end: bytes | list[int],
    options: dict[str, object],
    finish: tuple[Finish, str | int | None],
) -> None:
    text = b'<c>{"name": "f", "arguments": {"a":'
    result = run(tokenizer, [*text, *end], markup=IN_PARTS, **options)
    (call,) = result.sum.tool_calls
    assert (call.name, call.arguments) == ("f", '{"a":1')
    assert (result.text, result.finish) == ("", finish)


def test_special_tokens_are_text_for_the_markup_alone(pieces: Tokenizer) -> None:
    tokens = [CALL, PIECES.index(b"1"), PIECES.index(b"</c>"), MUTE, END]
    known = run(pieces, tokens, markup=MARKUP)
    assert (known.text, len(known.sum.tool_calls)) == ("", 1)
    assert run(pieces, tokens).text == "1</c>"


def test_ids_of_calls_differ_and_come_again(tokenizer: Tokenizer) -> None:
    def ids(request_id: str, choice: int) -> list[str | None]:
        request = GenerationRequest(id=request_id, prompt=[1], max_tokens=99, markup=MARKUP)
        output = Output(request, tokenizer, choice)
        return [call.id for call in go_on(output, b"<c>2</c>").sum.tool_calls]

    found = [*ids("r", 0), *ids("r", 1), *ids("s", 0)]
    assert len(set(found)) == 6
    assert ids("r", 0) == found[:2]
    own: Any = lambda text: {"name": "f", "id": "own"}  # noqa: E731
    (call,) = run(tokenizer, b"<c>1</c>", markup=replace(MARKUP, parse=own)).sum.tool_calls
    assert call == ToolCallPart(0, "{}", "own", "f")


def test_deltas_name_their_choice(tokenizer: Tokenizer) -> None:
    output = Output(GenerationRequest(id="r", prompt=[1], max_tokens=9), tokenizer, 3)
    assert [delta.choice for delta in go_on(output, b"ab").deltas] == [3, 3]


@given(TOKENS, REQUESTS)
def test_a_resumed_output_is_the_uninterrupted_one(
    pieces: Tokenizer, tokens: list[int], request_: GenerationRequest
) -> None:
    whole = go_on(Output(request_, pieces), tokens)
    total = whole.sum
    before = Delta()
    for place in range(len(whole.deltas) + 1):
        again = Output(request_, pieces)
        count = len(before.token_ids)
        end = again.restore(before.token_ids)
        assert again.tokens == count
        if end is not None:
            # The attempt was cut off between the last delta and the word that it was the last.
            assert (place, end) == (len(whole.deltas), whole.end)
            break
        rest = go_on(again, tokens[count:])
        together = replace(before, tool_calls=[*before.tool_calls], token_ids=[*before.token_ids])
        for delta in rest.deltas:
            together.append(delta)
        assert together == total
        assert rest.end == whole.end
        if place < len(whole.deltas):
            before.append(whole.deltas[place])


@given(TOKENS, REQUESTS)
def test_all_tokens_leave_in_order(
    pieces: Tokenizer, tokens: list[int], request_: GenerationRequest
) -> None:
    result = go_on(Output(request_, pieces), tokens)
    ids = result.sum.token_ids
    assert ids == tokens[: len(ids)]
    if result.end is not None:
        assert len(ids) == result.end.output_tokens
    counts = [delta.output_tokens for delta in result.deltas]
    assert counts == sorted(set(counts))
    assert all(delta.token_ids for delta in result.deltas)


@given(st.lists(st.integers(0, END - 1), max_size=15), st.sampled_from(["END", "--\n", "ab<"]))
def test_a_token_leaves_with_the_first_of_its_text(
    pieces: Tokenizer, tokens: list[int], stop: str
) -> None:
    """Without parts, so that text can be counted, and too short for patience to end."""
    result = run(pieces, tokens, stop_strings=(stop,))
    whole = run(pieces, tokens)  # What the tokens give where nothing is held back.
    assert whole.end is None
    # Where the text of each token begins: it is complete characters only.
    begins = {}
    place = count = 0
    for delta in whole.deltas:
        *_, last = range(count, count + len(delta.token_ids))
        begins[last] = place
        place, count = place + len(delta.text), last + 1
    texts = count = 0
    for delta in result.deltas if result.end is None else result.deltas[:-1]:
        count += len(delta.token_ids)
        texts += len(delta.text)
        sent = [begin for token, begin in begins.items() if token < count]
        kept = [begin for token, begin in begins.items() if token >= count]
        assert all(begin <= texts for begin in sent)
        assert not delta.text or max(sent) < texts
        assert all(begin >= texts for begin in kept)


def test_a_long_output_takes_linear_time(pieces: Tokenizer) -> None:
    tokens = [CALL, *[PIECES.index(b"---")] * 100_000, END]
    request = GenerationRequest(id="r", prompt=[1], max_tokens=10**6, markup=MARKUP)
    assert len(go_on(Output(request, pieces), tokens).text) == 3 + 300_000
    output = Output(replace(request, markup=Markup()), pieces)
    assert output.restore(tokens[1:-1]) is None
    assert output.tokens == 100_000
