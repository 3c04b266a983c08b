"""What models of every family write gives the same wherever it is cut, and wherever it ends gives
no exception."""

from __future__ import annotations

import json
import pkgutil
import random
from dataclasses import replace

import mlx_lm.tool_parsers
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from headrace_runner.engine.text.output import Output
from headrace_runner.engine.text.parts import Markup, Parts
from headrace_runner.engine.text.request import ChoiceEnd, Delta, Finish, GenerationRequest
from headrace_runner.models.tokenizer import Tokenizer
from tests.unit.text.families import SAMPLES, TOOLS, Sample
from tests.unit.text.test_parts import cut_at, markup, split

NAMES = frozenset(tool["function"]["name"] for tool in TOOLS)  # type: ignore[index]
WHOLE = [(family, family, sample) for family, samples in SAMPLES.items() for sample in samples]
IN_PARTS = [("json_tools in parts", "json_tools", sample) for sample in SAMPLES["json_tools"]]
EOS = "<eos>"

every_sample = pytest.mark.parametrize(
    ("known", "sample"),
    [
        pytest.param(
            replace(markup(family), offered=NAMES) if label != family else markup(family),
            sample,
            id=label,
        )
        for label, family, sample in WHOLE + IN_PARTS
    ],
)


def test_every_parser_of_mlx_lm_has_a_sample() -> None:
    package = mlx_lm.tool_parsers
    assert {module.name for module in pkgutil.iter_modules(package.__path__)} == set(SAMPLES)


@every_sample
def test_it_means_what_the_model_meant(known: Markup, sample: Sample) -> None:
    whole = split(known, [sample.text])
    assert [(c.name, json.loads(c.arguments)) for c in whole.tool_calls] == sample.calls
    assert [c.id for c in whole.tool_calls if c.id] == sample.ids
    assert whole.text == sample.before + sample.after
    assert whole.reasoning == sample.reasoning


@every_sample
def test_it_is_the_same_wherever_it_is_cut(known: Markup, sample: Sample) -> None:
    text = sample.text
    whole = split(known, [text])
    assert split(known, text) == whole
    for place in range(len(text)):
        assert split(known, [text[:place], text[place:]]) == whole
    draws = random.Random(text)
    for _ in range(20):
        cuts = draws.choices(range(len(text)), k=draws.randint(2, 40))
        assert split(known, cut_at(text, cuts)) == whole


@every_sample
def test_it_may_end_anywhere(known: Markup, sample: Sample) -> None:
    """Cut from outside what has not ended is text, or what was sent of it; ended by the model it
    is whatever the parser makes of it. Never is it lost, and never an exception."""
    whole = split(known, [sample.text])
    data = sample.text.encode()
    for place in range(len(data)):
        text = data[:place].decode(errors="replace")
        cut = split(known, [text], cut=True)
        assert_begins(cut, whole)
        if known.offered is None:
            assert all(json.loads(call.arguments) is not None for call in cut.tool_calls)
            if not cut.tool_calls:
                assert plain(known, text) == cut
        ended = split(known, [text])
        assert ended.tool_calls[: len(cut.tool_calls)] == cut.tool_calls
        if ended.tool_calls == cut.tool_calls:
            assert ended == cut


def assert_begins(cut: Parts, whole: Parts) -> None:
    """Its calls are those of the whole, of which the last may be cut."""
    last = len(cut.tool_calls) - 1
    for index, call in enumerate(cut.tool_calls):
        expected = whole.tool_calls[index]
        assert (call.id, call.name) == (expected.id, expected.name)
        if call.arguments != expected.arguments:
            assert index == last
            assert expected.arguments.startswith(call.arguments.rstrip("\ufffd"))


def plain(known: Markup, text: str) -> Parts:
    return split(replace(known, parse=None, offered=None), [text])


@every_sample
def test_it_is_the_same_as_tokens_and_carried_on(known: Markup, sample: Sample) -> None:
    tokenizer = as_tokens(known)
    tokens = tokenizer.encode(sample.text + EOS, add_special=False)
    assert len(tokens) > len(sample.calls)
    known = replace(known, special_ids=frozenset(tokenizer.special_ids) - tokenizer.eos_ids)
    request = GenerationRequest(id="r", prompt=[1], max_tokens=9999, markup=known)
    whole, end = take(Output(request, tokenizer), tokens)
    assert end is not None
    assert end.reason is Finish.TOOL_CALLS
    expected = split(known, [sample.text])
    assert (whole.text, whole.reasoning) == (expected.text, expected.reasoning)
    assert [replace(c, id=None) for c in whole.tool_calls] == [
        replace(c, id=None) for c in expected.tool_calls
    ]
    assert all(call.id for call in whole.tool_calls)
    for place in random.Random(sample.text).choices(range(len(tokens)), k=8):
        first = Output(request, tokenizer)
        sent, _ = take(first, tokens[:place])
        again = Output(request, tokenizer)
        assert again.restore(sent.token_ids) is None
        rest, last = take(again, tokens[len(sent.token_ids) :])
        sent.append(rest)
        assert (sent, last) == (whole, end)


def take(output: Output, tokens: list[int]) -> tuple[Delta, ChoiceEnd | None]:
    """All that some tokens give."""
    whole, end = Delta(), None
    for token in tokens:
        delta, end = output.push(token)
        if delta is not None:
            whole.append(delta)
    return whole, end


def as_tokens(known: Markup) -> Tokenizer:
    """A tokenizer with the markers for tokens, pairs of letters, and single bytes."""
    marks = (known.call_start, known.call_end, known.reasoning_start, known.reasoning_end)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("a", "t"), ("e", "r"), ('"', ":"), ("{", '"'), ("<", "/"), ("Ã", "©")]
    vocabulary = letters + [a + b for a, b in pairs]
    backend = RustTokenizer(models.BPE({text: i for i, text in enumerate(vocabulary)}, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(text, normalized=False) for text in (EOS, *filter(None, marks))]
    )
    return Tokenizer(backend, tokenizer_config={"eos_token": EOS})


@pytest.mark.parametrize("family", sorted(SAMPLES))
def test_reasoning_that_is_cut_anywhere_stays_reasoning(family: str) -> None:
    known = markup(family)
    text = f"{known.reasoning_start}So <b>{known.reasoning_end[:-1]} é{known.reasoning_end}Yes."
    whole = split(known, [text])
    assert whole == Parts("Yes.", f"So <b>{known.reasoning_end[:-1]} é")
    opened = replace(known, in_reasoning=True)
    begin, end = len(known.reasoning_start), len(text) - len("Yes.")
    for place in range(len(text) + 1):
        assert split(known, [text[:place], text[place:]]) == whole
        cut = split(known, [text[:place]], cut=True)
        if place < begin:
            assert cut == Parts(text[:place])
        else:
            inside = place < end
            assert cut == (
                Parts("", text[begin:place]) if inside else replace(whole, text=text[end:place])
            )
        assert split(opened, [text[begin:place], text[max(begin, place) :]]) == whole
    assert split(known, [text, known.call_start, "?"], cut=True).text == f"Yes.{known.call_start}?"
