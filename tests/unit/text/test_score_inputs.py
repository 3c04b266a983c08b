"""Where a prompt ends and its continuations begin, in tokens; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.errors import ContextLengthExceeded, InvalidRequest
from headrace.v1.common_pb2 import TokenIds
from headrace.v1.completion_pb2 import ChatInput, ChatMessage, ChatRole, CompletionInput
from headrace.v1.score_pb2 import Continuation, ScoreRequest
from headrace_runner.models.chat import ChatTemplate
from headrace_runner.models.tokenizer import Tokenizer
from headrace_runner.services import score_inputs
from headrace_runner.services.score_inputs import Sequences, sequences_of

CONTEXT = 64
TEMPLATE = ChatTemplate({"default": "{% for m in messages %}{{ m.content }}\n{% endfor %}"}, {})


def ids(*given: int) -> TokenIds:
    return TokenIds(ids=given)


def ask(given: str | TokenIds | CompletionInput, *continuations: str | TokenIds) -> ScoreRequest:
    if isinstance(given, str):
        given = CompletionInput(prompt=given)
    elif isinstance(given, TokenIds):
        given = CompletionInput(token_ids=given)
    return ScoreRequest(
        model="m",
        input=given,
        continuations=[
            Continuation(text=c) if isinstance(c, str) else Continuation(token_ids=c)
            for c in continuations
        ],
    )


def split(tokenizer: Tokenizer, request: ScoreRequest, top: int = 0) -> Sequences:
    return sequences_of(request, tokenizer, TEMPLATE, CONTEXT, top)


def scored(tokenizer: Tokenizer, found: Sequences) -> list[str]:
    """The text of what is scored."""
    pairs = zip(found.continuations, found.skipped, strict=True)
    return [
        b"".join(map(tokenizer.token_bytes, tokens[skipped:])).decode() for tokens, skipped in pairs
    ]


def test_a_border_between_tokens_is_the_texts_own(smollm2: Tokenizer) -> None:
    found = split(smollm2, ask("The capital of France is", " Paris", " the city of light."))
    assert found.prompt == smollm2.encode("The capital of France is", add_special=True)
    assert found.skipped == (0, 0)
    assert scored(smollm2, found) == [" Paris", " the city of light."]
    assert found.prompt_tokens == len(found.prompt) + sum(map(len, found.continuations))


def test_white_space_at_the_end_of_a_prompt_goes_to_the_continuations(smollm2: Tokenizer) -> None:
    moved = split(smollm2, ask("The capital of France is ", "Paris", "7"))
    assert moved == split(smollm2, ask("The capital of France is", " Paris", " 7"))
    assert scored(smollm2, moved) == [" Paris", " 7"]


def test_a_token_over_the_border_is_the_continuations(smollm2: Tokenizer) -> None:
    request = ask("I understand the conver", "sation", "!")
    found = split(smollm2, request)
    # "conver" has other tokens alone than "conversation" has.
    assert scored(smollm2, found) == [" conversation", "!"]
    # What the second has of the prompt is computed behind what both share, and not scored.
    assert found.skipped[0] == 0
    assert found.skipped[1] > 0
    whole = smollm2.encode("I understand the conver!", add_special=True)
    assert [*found.prompt, *found.continuations[1]] == whole
    # So it is scored as it would be alone.
    alone = split(smollm2, ask("I understand the conver", "!"))
    assert [*alone.prompt, *alone.continuations[0]] == whole
    assert found.prompt_tokens == 1 + len(whole)


def test_a_chat_is_taken_as_its_template_ends_it(smollm2: Tokenizer) -> None:
    message = ChatMessage(role=ChatRole.CHAT_ROLE_USER, content="Yes or no?")
    found = split(smollm2, ask(CompletionInput(chat=ChatInput(messages=[message])), "yes"))
    assert found.prompt == smollm2.encode("Yes or no?\n", add_special=False)
    assert scored(smollm2, found) == ["yes"]


def test_tokens_are_taken_as_they_are(smollm2: Tokenizer) -> None:
    found = split(smollm2, ask(ids(5, 6), ids(7), " Paris", ids(8, 9)))
    paris = tuple(smollm2.encode(" Paris", add_special=False))
    assert found == Sequences([5, 6], ((7,), paris, (8, 9)), (0, 0, 0), 5 + len(paris))
    after_text = split(smollm2, ask("It is ", ids(7)))
    # The space has gone to those that are text, of which there is none.
    assert after_text.prompt == smollm2.encode("It is", add_special=True)


def test_a_token_before_the_text_stays_there(sentencepiece: Tokenizer) -> None:
    found = split(sentencepiece, ask("hello", " world"))
    whole = sentencepiece.encode("hello world", add_special=True)
    assert whole[0] == sentencepiece.bos_id
    assert [*found.prompt, *found.continuations[0]] == whole
    # It is enough of a prompt.
    found = split(sentencepiece, ask("", "hello"))
    assert found.prompt == whole[:1]
    assert scored(sentencepiece, found) == [" hello"]


@pytest.mark.parametrize(
    ("request_", "field", "says"),
    [
        (ask("", "a"), "input.prompt", "empty"),
        (ask(ids(10**6), "a"), "input.token_ids.ids[0]", "vocabulary"),
        (ask("It is", "b", ids(10**6)), "continuations[1].token_ids.ids[0]", "vocabulary"),
        (ask("a", ids()), "continuations[0].token_ids.ids", "at least one"),
        (ask("conver", "x", "sation"), "continuations[1].text", "first token"),
    ],
)
def test_what_cannot_be_scored_names_its_field(
    smollm2: Tokenizer, request_: ScoreRequest, field: str, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        split(smollm2, request_)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_the_context_bounds_what_is_computed(smollm2: Tokenizer) -> None:
    # The last token is not computed.
    split(smollm2, ask(ids(*[5] * CONTEXT), ids(6)))
    split(smollm2, ask(ids(5), ids(*[6] * CONTEXT)))
    with pytest.raises(ContextLengthExceeded) as caught:
        split(smollm2, ask(ids(*[5] * (CONTEXT + 1)), ids(6)))
    assert caught.value.metadata == {"limit": "64", "actual": "65"}
    with pytest.raises(ContextLengthExceeded, match="shorten it or the prompt") as caught:
        split(smollm2, ask(ids(5, 5), ids(6), ids(*[6] * CONTEXT)))
    assert [violation.field for violation in caught.value.violations] == ["continuations[1]"]
    assert caught.value.metadata == {"limit": "64", "actual": "65"}


def test_too_much_at_once_is_refused_before_it_is_computed(
    smollm2: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: dict[str, Any] = {"_MOST_TOKENS": 12, "_MOST_CHARACTERS": 30}
    for name, value in limits.items():
        monkeypatch.setattr(score_inputs, name, value)
    tokens = ask(ids(5), ids(6, 7, 8), ids(9))
    split(smollm2, tokens, top=2)
    with pytest.raises(InvalidRequest, match="at most 3 are scored"):
        split(smollm2, tokens, top=3)
    split(smollm2, ask("0123456789", "abcde", "abcde"))
    with pytest.raises(InvalidRequest, match="31 characters"):
        split(smollm2, ask("0123456789", "abcde", "abcdef"))
