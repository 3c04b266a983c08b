"""`headrace score` against a scripted controller."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.running import Run, let_arrive
from tests.unit.sdk.fake import Fake


def test_the_likeliest_comes_first(fake: Fake, headrace: Run) -> None:
    code, out, _ = headrace("score", "m", "It is", "-c", " Paris", "-c", "ok")
    assert code == 0
    assert out.splitlines() == [
        "LOGPROB  MEAN     TOKENS  GREEDY  CONTINUATION",
        "-1.0000  -0.5000  2       yes     'ok'",
        "-3.0000  -0.5000  6       no      ' Paris'",
    ]
    (request,) = fake.requests
    assert request.input.prompt == "It is"
    assert not request.logprobs.enabled


def test_lines_of_standard_input_and_their_tokens(fake: Fake, headrace: Run) -> None:
    code, out, _ = headrace("score", "m", "p", "--tokens", "--mean", stdin=" b\n\nc\n")
    assert code == 0
    assert [c.text for c in fake.requests[0].continuations] == [" b", "c"]
    assert out.splitlines()[4:8] == [
        "' b'",
        "LOGPROB  ID  TOKEN",
        "-0.5000  32  ' '",
        "-0.5000  98  'b'",
    ]


def test_a_chat_and_json_in_the_given_order(fake: Fake, headrace: Run) -> None:
    answer = json.loads(headrace("score", "m", "hi", "--chat", "--json", "-c", "abc", "-c", "d")[1])
    assert [score["logprob"] for score in answer["scores"]] == [-1.5, -0.5]
    assert answer["usage"]["prompt_tokens"] == 8
    (message,) = fake.requests[0].input.chat.messages
    assert message.content == "hi"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [((), "no continuation"), (("-c", "a", "--mean", "--json"), "cannot go together")],
)
def test_wrong_usage(fake: Fake, headrace: Run, arguments: tuple[str, ...], says: str) -> None:
    code, _, err = headrace("score", "m", "p", *arguments, stdin="\n")
    assert code == 2
    assert says in err
    assert fake.requests == []


def test_a_model_that_is_missing_is_pulled(fake: Fake, headrace: Run) -> None:
    let_arrive(fake, "smollm2:135m")
    code, out, _ = headrace("score", "smollm2", "p", "-c", "ab")
    assert (code, out.splitlines()[1].split()[0]) == (0, "-1.0000")
