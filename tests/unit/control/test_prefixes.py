"""Fingerprints of prompts: alike as far as the prompts are, few, and cheap."""

from itertools import pairwise, takewhile

import pytest

from headrace.v1.common_pb2 import TokenIds
from headrace.v1.completion_pb2 import (
    ChatInput,
    ChatMessage,
    ChatRole,
    StreamCompletionRequest,
)
from headrace_server.scheduling.prefixes import fingerprints
from headrace_server.scheduling.state import BORDERS


def prompt(text: str) -> StreamCompletionRequest:
    return StreamCompletionRequest(prompt=text)


def chat(*texts: str) -> StreamCompletionRequest:
    roles = (ChatRole.CHAT_ROLE_USER, ChatRole.CHAT_ROLE_ASSISTANT)
    messages = [ChatMessage(role=roles[i % 2], content=text) for i, text in enumerate(texts)]
    return StreamCompletionRequest(chat=ChatInput(messages=messages))


def shared(one: StreamCompletionRequest, other: StreamCompletionRequest) -> int:
    """How many prefixes the two have in common."""
    pairs = zip(fingerprints(one), fingerprints(other), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def test_borders_grow_by_half_at_most() -> None:
    assert list(BORDERS) == sorted(set(BORDERS))
    assert all(1 < after / before <= 1.5 for before, after in pairwise(BORDERS))


@pytest.mark.parametrize("border", BORDERS[:6])
def test_a_prefix_is_known_from_its_border_on(border: int) -> None:
    assert len(fingerprints(prompt("x" * border))) == BORDERS.index(border) + 1
    assert len(fingerprints(prompt("x" * (border - 1)))) == BORDERS.index(border)


def test_prompts_share_what_they_have_in_common_and_no_more() -> None:
    begin = "x" * 1000
    assert shared(prompt(begin + "one" * 1000), prompt(begin + "two" * 1000)) == 4
    assert BORDERS[3] <= 1000 < BORDERS[4]


def test_a_conversation_that_goes_on_shares_all_of_it() -> None:
    turns = ["x" * 300, "y" * 300, "z" * 300]
    before = fingerprints(chat(*turns))
    after = fingerprints(chat(*turns, "w" * 3000, "v" * 3000))
    assert before
    assert after[: len(before)] == before


def test_one_message_that_begins_alike_shares_its_beginning() -> None:
    document = "d" * 2000
    assert shared(chat(document + "What?"), chat(document + "Why, and what else?")) >= 5


def test_who_said_it_and_in_how_many_messages_matters() -> None:
    assert shared(chat("x" * 200, "x" * 200), chat("x" * 400)) == 0


def test_tokens_are_fingerprinted_too() -> None:
    def tokens(count: int) -> StreamCompletionRequest:
        return StreamCompletionRequest(token_ids=TokenIds(ids=range(count)))

    assert shared(tokens(200), tokens(2000)) == len(fingerprints(tokens(200))) > 0


def test_they_are_few_however_long_the_prompt() -> None:
    assert len(fingerprints(prompt("x" * (4 << 20)))) == len(BORDERS) < 32
    assert fingerprints(prompt("short")) == ()


def test_the_same_prompt_with_another_adapter_is_another_prefix() -> None:
    long = prompt("x" * 4000)
    found = [set(fingerprints(long, digest)) for digest in (None, "sha256:1", "sha256:2")]
    assert all(found)
    assert not found[0] & found[1] | found[1] & found[2] | found[0] & found[2]
