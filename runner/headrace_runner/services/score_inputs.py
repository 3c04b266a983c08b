"""What a request to score asks for, as tokens that are checked against the model. Pure.

Where a prompt ends and a continuation begins is found in tokens, much as lm-evaluation-harness
does: white space at the end of a prompt goes to the continuations, and prompt and continuation are
tokenized joined. A token that reaches over the border counts as the continuation's.

Encoding may take seconds: call `sequences_of` from a worker thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.errors import ContextLengthExceeded
from headrace.v1.score_pb2 import Continuation, ScoreRequest
from headrace_runner.models.chat import ChatTemplate, invalid_field
from headrace_runner.models.tokenizer import Tokenizer
from headrace_runner.services.prompt import check_ids, prompt_ids, render_chat

_MOST_CHARACTERS = 64 << 20
"""Of all continuations, each joined to the prompt."""
_MOST_TOKENS = 1 << 20
"""Of all continuations, each with the likeliest in its place: so many fit into a message."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Tokens to compute and to score."""

    prompt: list[int]
    """What all continuations share; at least one."""
    continuations: tuple[tuple[int, ...], ...]
    """What each has behind that."""
    skipped: tuple[int, ...]
    """How many of these, at the beginning of each, are the prompt's own and not scored."""
    prompt_tokens: int
    """Of the whole prompt, and of what is scored."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    ids: list[int]
    """Its own tokens, those that go before a text included."""
    text: str | None = None
    """What continuations are joined to; None: they stand alone."""
    moved: str = ""
    """What goes from its end to the continuations."""
    leading: Sequence[int] = ()
    """Tokens that go before the text."""


def sequences_of(
    request: ScoreRequest, tokenizer: Tokenizer, template: ChatTemplate, longest: int, top: int
) -> Sequences:
    """The tokens of a request. Prompt and continuation have `longest` together, and one more which
    is not computed. `top`: how many of the likeliest are wanted in each place.

    Raises what `prompt_ids` raises; InvalidRequest for continuations that are too many together,
    leave nothing of the prompt, or have tokens that are none of the model's;
    ContextLengthExceeded.
    """
    prompt = _prompt(request, tokenizer, template)
    if len(prompt.ids) > longest:
        raise ContextLengthExceeded(limit=longest, actual=len(prompt.ids))
    _check_work(request, prompt)
    shared, scored = list[int](), list[list[int]]()
    for index, given in enumerate(request.continuations):
        field = f"continuations[{index}]"
        common, tokens = _split(given, prompt, tokenizer, field)
        if (computed := common + len(tokens) - 1) > longest:
            remedy = "shorten it or the prompt"
            raise ContextLengthExceeded(limit=longest, actual=computed, field=field, remedy=remedy)
        shared.append(common)
        scored.append(tokens)
    total = sum(map(len, scored))
    if total * (1 + top) > _MOST_TOKENS:
        raise invalid_field(
            "continuations",
            f"have {total} tokens together, and with logprobs.top = {top} at most "
            f"{_MOST_TOKENS // (1 + top)} are scored; ask in several requests",
        )
    fork = min(shared)
    return Sequences(
        prompt.ids[:fork],
        tuple(
            (*prompt.ids[fork:common], *tokens)
            for common, tokens in zip(shared, scored, strict=True)
        ),
        tuple(common - fork for common in shared),
        len(prompt.ids) + total,
    )


def _prompt(request: ScoreRequest, tokenizer: Tokenizer, template: ChatTemplate) -> _Prompt:
    match request.input.WhichOneof("input"):
        case "chat":
            text = render_chat(request.input.chat, template, "input.chat")
            ids = tokenizer.encode(text, add_special=False)
            if not ids:
                raise invalid_field("input.chat.messages", "must not make an empty prompt")
            return _Prompt(ids, text)
        case "prompt":
            leading = _leading(tokenizer)
            whole = request.input.prompt
            text = whole.rstrip() or ("" if leading else whole)
            ids = [*leading, *tokenizer.encode(text, add_special=False)]
            if not ids:
                raise invalid_field(
                    "input.prompt", "must not be empty: this model adds no token of its own"
                )
            return _Prompt(ids, text, whole[len(text) :], leading)
        case _:
            return _Prompt(prompt_ids(request.input, tokenizer, template, parent="input."))


def _leading(tokenizer: Tokenizer) -> list[int]:
    """The special tokens before a text. What a model wants behind it would come in between."""
    plain = tokenizer.encode("a", add_special=False)
    around = tokenizer.encode("a", add_special=True)
    places = range(len(around) - len(plain) + 1)
    at = next((i for i in places if around[i : i + len(plain)] == plain), 0)
    return around[:at]


def _check_work(request: ScoreRequest, prompt: _Prompt) -> None:
    """Refuses what would take too long to tokenize."""
    before = len(prompt.text or "")
    texts = (c.text for c in request.continuations if c.WhichOneof("continuation") == "text")
    joined = sum(before + len(text) for text in texts)
    if joined > _MOST_CHARACTERS:
        raise invalid_field(
            "continuations",
            f"have {joined} characters, each with the prompt, and at most {_MOST_CHARACTERS} are "
            "tokenized; ask in several requests, or give the prompt's token ids",
        )


def _split(
    given: Continuation, prompt: _Prompt, tokenizer: Tokenizer, field: str
) -> tuple[int, list[int]]:
    """How many of the prompt's own tokens go before a continuation, and the tokens to score."""
    if given.WhichOneof("continuation") == "token_ids":
        tokens = list(given.token_ids.ids)
        if not tokens:
            raise invalid_field(f"{field}.token_ids.ids", "must have at least one token")
        check_ids(tokens, tokenizer, f"{field}.token_ids.ids")
        return len(prompt.ids), tokens
    if prompt.text is None:
        common, joined = len(prompt.ids), [*prompt.ids]
        joined += tokenizer.encode(given.text, add_special=False)
    else:
        whole = prompt.text + prompt.moved + given.text
        joined = [*prompt.leading, *tokenizer.encode(whole, add_special=False)]
        pairs = zip(prompt.ids, joined, strict=False)
        same = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
        common = min(len(prompt.ids), len(joined)) if same is None else same
    if common == len(joined):
        raise invalid_field(f"{field}.text", "adds no token to the prompt; leave it out")
    if not common:
        raise invalid_field(
            f"{field}.text",
            "joins the prompt's first token, so that there is nothing for it to follow; give a "
            "longer prompt, or token ids",
        )
    return common, joined[common:]
