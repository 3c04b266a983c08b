"""Tokens become text, and the end is found where it is."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from headrace_runner.engine.text.batch import Logprobs
from headrace_runner.engine.text.output import Output
from headrace_runner.engine.text.request import Finish, GenerationRequest
from headrace_runner.models.tokenizer import Tokenizer
from tests.unit.engine.tiny import EOS

NO_TEXT = 258


@dataclass
class Run:
    """What came of tokens, up to the end."""

    texts: list[str] = field(default_factory=list)
    end: tuple[Finish, str | int | None] | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)


def run(tokenizer: Tokenizer, tokens: bytes | list[int], **options: object) -> Run:
    given: dict[str, object] = {"id": "r", "prompt": [1], "max_tokens": 1000} | options
    output = Output(GenerationRequest(**given), tokenizer)  # type: ignore[arg-type]
    result = Run()
    for count, token in enumerate(tokens, start=1):
        delta, result.end = output.push(token, None)
        assert (delta.token_ids, delta.output_tokens) == ([token], count)
        result.texts.append(delta.text)
        if result.end is not None:
            break
    return result


def test_b3_text_leaves_as_whole_characters(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"\xe3\x81\x93\xe3\x82\x93!")
    assert result.texts == ["", "", "こ", "", "", "ん", "!"]
    assert result.end is None


def test_b3_a_character_that_the_limit_cuts_is_replaced(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"a\xe3\x81\x93", max_tokens=3)
    assert (result.text, result.end) == ("a\ufffd", (Finish.LENGTH, None))


def test_b4_a_stop_over_three_tokens_is_not_emitted(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"one END two", stop_strings=("END",))
    assert result.texts == ["o", "n", "e", " ", "", "", ""]
    assert result.end == (Finish.STOP, "END")


def test_b4_text_that_only_began_like_a_stop_is_emitted(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"an ENd", stop_strings=("END",))
    assert result.texts == ["a", "n", " ", "", "", "ENd"]
    assert result.end is None


def test_b4_what_is_held_back_leaves_with_the_end(tokenizer: Tokenizer) -> None:
    held = run(tokenizer, b"an EN", stop_strings=("END",), max_tokens=5)
    assert (held.text, held.end) == ("an EN", (Finish.LENGTH, None))
    ended = run(tokenizer, [*b"an EN", EOS], stop_strings=("END",))
    assert (ended.text, ended.end) == ("an EN", (Finish.END_OF_TEXT, EOS))


def test_a_stop_that_the_last_token_completes_wins_over_the_length(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"an END", stop_strings=("END",), max_tokens=6)
    assert (result.text, result.end) == ("an ", (Finish.STOP, "END"))


def test_a_stop_token_wins_over_the_length(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"ab", stop_token_ids=frozenset(b"b"), max_tokens=2)
    assert (result.text, result.end) == ("a", (Finish.STOP, ord("b")))
    ended = run(tokenizer, [*b"a", EOS], max_tokens=2)
    assert (ended.text, ended.end) == ("a", (Finish.END_OF_TEXT, EOS))


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
    assert (result.text, result.end) == ("ab", (Finish.LENGTH, None))
    stopped = run(tokenizer, [*b"a", EOS, *b"b"], ignore_eos=True, stop_token_ids=frozenset([EOS]))
    assert (stopped.text, stopped.end) == ("a", (Finish.STOP, EOS))


def test_the_first_of_several_stops_counts(tokenizer: Tokenizer) -> None:
    result = run(tokenizer, b"aXbYc", stop_strings=("Yc", "b", "zzz"))
    assert (result.text, result.end) == ("aX", (Finish.STOP, "b"))


def test_logprobs_go_with_their_token(tokenizer: Tokenizer) -> None:
    output = Output(GenerationRequest(id="r", prompt=[1], max_tokens=2), tokenizer)
    logprobs = Logprobs(-0.5, ((97, -0.5), (98, -1.5)))
    delta, _ = output.push(97, logprobs)
    assert delta.logprobs == [logprobs]
