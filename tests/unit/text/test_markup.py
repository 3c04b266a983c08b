"""What sets reasoning and tool calls apart is found out from what a model brings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from headrace_runner.engine.text.output import Output
from headrace_runner.engine.text.request import Delta, Finish, GenerationRequest
from headrace_runner.models.chat import ChatTemplate
from headrace_runner.models.markup import Markup, ModelMarkup, load_markup, thinking_option
from headrace_runner.models.tokenizer import Tokenizer

EOS = "<eos>"
TOOLS = "{% if tools %}{{ tools }}{% endif %}"

Found = tuple[ModelMarkup, Tokenizer]


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., Found]:
    """Makes a model directory and finds out its markup."""

    def make(
        template: str | dict[str, str],
        special: Sequence[str] = (),
        added: Sequence[str] = (),
        **settings: Any,
    ) -> Found:
        backend = RustTokenizer(
            models.BPE({c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
        )
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_tokens([AddedToken(token, normalized=False) for token in added])
        backend.add_special_tokens([AddedToken(t, normalized=False) for t in (EOS, *special)])
        backend.save(str(tmp_path / "tokenizer.json"))
        named = template
        if isinstance(template, dict):
            named = [{"name": n, "template": t} for n, t in template.items()]  # type: ignore[assignment]
        config = {"eos_token": EOS, "chat_template": named} | settings
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = Tokenizer.load(tmp_path)
        chat = ChatTemplate.load(tmp_path, tokenizer.special_tokens)
        return load_markup(tmp_path, chat, tokenizer), tokenizer

    return make


def contents(tokenizer: Tokenizer, ids: frozenset[int]) -> set[str]:
    return {tokenizer.token_bytes(i).decode() for i in ids}


def test_smollm2_has_none(smollm2_dir: Path, smollm2: Tokenizer) -> None:
    template = ChatTemplate.load(smollm2_dir, smollm2.special_tokens)
    found = load_markup(smollm2_dir, template, smollm2)
    assert found == ModelMarkup()
    assert not found.reasons
    assert not found.calls_tools
    assert found.of_request(tools=[], reasoning_apart=True, prompt_end="<think>") == Markup()


def test_a_model_without_a_template_has_none(model: Callable[..., Found]) -> None:
    found, tokenizer = model("", added=["<think>", "</think>"])
    assert not found.reasons
    assert load_markup(Path("/none"), ChatTemplate({}, {}), tokenizer) == ModelMarkup()


# What of a family's template tells its tool calls, the module of its parser, the special tokens
# that calls are written with, and one that they are not.
FAMILIES = [
    ("<minimax:tool_call>", "minimax_m2", [], []),
    (
        "<|tool_call>{}<tool_call|>",
        "gemma4",
        ["<|tool_call>", "<tool_call|>", '<|"|>'],
        ["<turn|>"],
    ),
    (
        "<start_function_call>",
        "function_gemma",
        ["<start_function_call>", "<end_function_call>", "<escape>"],
        ["<start_of_turn>"],
    ),
    ("<longcat_tool_call>", "longcat", ["<longcat_tool_call>"], []),
    ("<tool_call><arg_key>", "glm47", ["<tool_call>", "</tool_call>", "<arg_key>"], ["<|user|>"]),
    ("<|tool_call_start|>", "pythonic", ["<|tool_call_start|>", "<|tool_call_end|>"], ["<|pad|>"]),
    ("<tool_call>\n<function=", "qwen3_coder", [], ["<|im_start|>"]),
    (
        "<|tool_calls_section_begin|>",
        "kimi_k2",
        ["<|tool_calls_section_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"],
        ["<|im_user|>"],
    ),
    ('<function name="f"><param name="p">', "minicpm5", [], []),
    ("[TOOL_CALLS]", "mistral", ["[TOOL_CALLS]", "[ARGS]"], ["[INST]"]),
    ("<atem:function_calls>", "muse_spark", [], []),
    ("<tool_call>{{ tool_call.name }}", "json_tools", [], ["<|im_start|>"]),
]


@pytest.mark.parametrize(("hint", "parser", "special", "other"), FAMILIES)
def test_families_by_their_templates(
    model: Callable[..., Found], hint: str, parser: str, special: list[str], other: list[str]
) -> None:
    # As text of a comment, so that the template can be compiled.
    found, tokenizer = model(TOOLS + "{# " + hint + " #}", [*special, *other])
    assert found.parser is not None
    assert found.parser.__module__ == f"mlx_lm.tool_parsers.{parser}"
    assert found.call_start
    assert contents(tokenizer, found.call_ids) == set(special)
    assert found.special_ids == frozenset()
    assert not found.reasons
    assert found.calls_tools


def test_a_parser_that_the_model_names(model: Callable[..., Found]) -> None:
    found, _ = model(TOOLS + "[TOOL_CALLS]", tool_parser_type="laguna")
    assert found.parser is not None
    assert found.call_start == "<tool_call>"


@pytest.mark.parametrize("name", ["no_such", "../secrets", "x\0", "__init__", "", 3])
def test_a_name_of_no_parser_leads_nowhere(model: Callable[..., Found], name: object) -> None:
    assert not model(TOOLS, tool_parser_type=name)[0].calls_tools


def test_parsers_by_the_vocabulary(model: Callable[..., Found]) -> None:
    found, tokenizer = model(TOOLS, ["<|tool_call_start|>", "<|tool_call_end|>"])
    assert found.call_start == "<|tool_call_start|>"
    assert len(found.call_ids) == 2
    assert contents(tokenizer, found.call_ids) == {found.call_start, found.call_end}


def test_the_template_for_tools_is_the_one_that_counts(model: Callable[..., Found]) -> None:
    found, _ = model({"default": "Hi", "tool_use": TOOLS + "[TOOL_CALLS]"})
    assert found.call_start == "[TOOL_CALLS]"
    assert found.call_end == ""


@pytest.mark.parametrize(
    ("start", "end", "tokens"),
    [
        ("<think>", "</think>", ["<think>", "</think>"]),
        ("<longcat_think>", "</longcat_think>", ["<longcat_think>", "</longcat_think>"]),
        ("<|channel>thought", "<channel|>", ["<|channel>", "<channel|>"]),
        (
            "<|open|>think<|sep|>",
            "<|close|>think<|sep|>",
            ["<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"],
        ),
    ],
)
def test_reasoning_by_the_vocabulary(
    model: Callable[..., Found], start: str, end: str, tokens: list[str]
) -> None:
    found, tokenizer = model("{{ enable_thinking }}", [*tokens, "<|other|>"])
    assert (found.reasoning_start, found.reasoning_end) == (start, end)
    assert found.reasons
    shown = contents(tokenizer, found.special_ids)
    assert shown == {token for token in tokens if token in start + end}
    plain, _ = model("{{ enable_thinking }}", added=tokens)
    assert plain.reasoning_start == start
    assert plain.special_ids == frozenset()
    assert not model("{{ messages }}", tokens)[0].reasons


REASONING = ModelMarkup(
    reasoning_start="<think>",
    reasoning_end="</think>",
    call_start="<c>",
    call_end="</c>",
    parser=lambda text, tools: [text, tools],
    special_ids=frozenset([1]),
    call_ids=frozenset([2]),
)


@pytest.mark.parametrize(
    ("prompt_end", "opened"),
    [
        ("<|assistant|><think>\n", True),
        ("<think>", True),
        ("<think>\n\n</think>\n\n", False),
        ("What is <think>?<|assistant|>", False),
    ],
)
def test_reasoning_that_the_prompt_has_opened(prompt_end: str, opened: bool) -> None:
    made = REASONING.of_request(tools=None, reasoning_apart=True, prompt_end=prompt_end)
    assert made.in_reasoning == opened
    assert (made.reasoning_start, made.reasoning_end) == ("<think>", "</think>")


def test_what_a_request_does_not_want_is_not_set_apart() -> None:
    within = REASONING.of_request(tools=[{"a": 1}], reasoning_apart=False, prompt_end="<think>")
    assert (within.reasoning_start, within.reasoning_end, within.in_reasoning) == ("", "", False)
    # The markers stay in the text, also where they are special tokens.
    assert within.special_ids == {1, 2}
    assert within.parse is not None
    assert within.parse("x") == ["x", [{"a": 1}]]
    bare = REASONING.of_request(tools=None, reasoning_apart=True, prompt_end="")
    assert bare.parse is None
    assert bare.special_ids == {1}


@pytest.mark.parametrize(
    ("template", "option"),
    [
        ("{% if enable_thinking %}{% endif %}", "enable_thinking"),
        ("{% if thinking %}{% endif %}", "thinking"),
        ("{% if thinking and enable_thinking %}{% endif %}", "enable_thinking"),
        ("{{ enable_thinking }}{{ raise_exception('no') }}", "enable_thinking"),
        ("{{ messages[0].thinking }} enable_thinking", None),
    ],
)
def test_the_variable_that_turns_reasoning_on(template: str, option: str | None) -> None:
    assert thinking_option(ChatTemplate({"default": template}, {})) == option


def test_special_tokens_of_a_call_reach_its_parser(model: Callable[..., Found]) -> None:
    section = ["<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"]
    call = ["<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"]
    think = ["<think>", "</think>"]
    found, tokenizer = model(
        TOOLS + "{{ thinking }}" + "{# " + section[0] + " #}", [*section, *call, *think, "<other>"]
    )
    text = (
        "<think>Hm.</think>Sure.<other>"
        + f"{section[0]}{call[0]}functions.f:0{call[1]}"
        + f'{{"x": 1}}{call[2]}{section[1]}{EOS}'
    )
    markup = found.of_request(tools=[], reasoning_apart=True, prompt_end="")
    request = GenerationRequest(id="r", prompt=[1], max_tokens=999, markup=markup)
    output, whole, end = Output(request, tokenizer), Delta(), None
    for token in tokenizer.encode(text, add_special=False):
        delta, end = output.push(token)
        if delta is not None:
            whole.append(delta)
    (part,) = whole.tool_calls
    assert (part.id, part.name, part.arguments) == ("functions.f:0", "f", '{"x": 1}')
    assert (whole.text, whole.reasoning) == ("Sure.", "Hm.")
    assert end is not None
    assert end.reason is Finish.TOOL_CALLS
