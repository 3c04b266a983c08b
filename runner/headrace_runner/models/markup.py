"""What sets reasoning and tool calls apart in a model's output.

Found out once for a model, by mlx-lm's own rules: from its chat template, its vocabulary and, for
tool calls, the parser that its tokenizer_config.json may name. Never fails: a model of which
nothing is known has no markup.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from headrace.errors import HeadraceError, UnsupportedParameter
from headrace_runner.models.chat import ChatTemplate, _find_sources
from headrace_runner.models.files import read_json
from headrace_runner.models.insides import calls_are_json, inferred_reasoning, inferred_tool_calls
from headrace_runner.models.tokenizer import Tokenizer

ToolParser: TypeAlias = Callable[[str, Any], object]
"""Takes what stands between the markers, and the tools on offer; raises whatever it will."""

_THINKING_OPTIONS = ("enable_thinking", "thinking")
"""Variables by which templates are told whether the model reasons, the commoner first."""


@dataclass(frozen=True, slots=True)
class Markup:
    """What sets reasoning and tool calls apart in one request's output; by default nothing.

    A marker of "" never comes.
    """

    reasoning_start: str = ""
    reasoning_end: str = ""
    in_reasoning: bool = False
    """Whether the prompt has opened the reasoning already."""
    call_start: str = ""
    call_end: str = ""
    """Where it is "", a tool call goes to the end of the output."""
    parse: Callable[[str], object] | None = None
    """Makes a call of what stands between the markers, or a list of calls: dicts with `name`,
    `arguments` and maybe `id`. May raise anything. None: nothing is taken for a call."""
    offered: frozenset[str] | None = None
    """Names of the tools, where a call is a JSON object, which can be sent in parts; None: calls
    are sent whole."""
    dropped: tuple[str, ...] = ()
    """Markers around the text that say nothing more than that it is text."""
    special_ids: frozenset[int] = frozenset()
    """Special tokens that the markers and the calls are written with."""


@dataclass(frozen=True, slots=True)
class ModelMarkup:
    """The markup that a model knows."""

    reasoning_start: str = ""
    reasoning_end: str = ""
    call_start: str = ""
    call_end: str = ""
    parser: ToolParser | None = None
    dropped: tuple[str, ...] = ()
    special_ids: frozenset[int] = frozenset()
    """Special tokens of the markers, but for those of the calls."""
    call_ids: frozenset[int] = frozenset()
    """Special tokens that calls are written with."""
    json_calls: bool = False
    """Whether a call is a JSON object between the markers."""

    @property
    def reasons(self) -> bool:
        """Whether the model can reason before it answers."""
        return bool(self.reasoning_start)

    @property
    def calls_tools(self) -> bool:
        """Whether its tool calls can be told from its text."""
        return self.parser is not None

    def opened_by(self, prompt_end: str) -> bool:
        """Whether a prompt that ends so has opened the reasoning."""
        return self.reasons and prompt_end.rstrip().endswith(self.reasoning_start)

    def of_request(
        self,
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        reasoning_apart: bool,
        prompt_end: str,
    ) -> Markup:
        """What to set apart for one request.

        `tools` are those on offer; None: nothing is taken for a call. `prompt_end` is the end of
        the prompt as text, special tokens included.
        """
        apart = reasoning_apart and self.reasons
        parse = offered = None
        if self.parser is not None and tools is not None:
            parse = _with_tools(self.parser, list(tools))
            if self.json_calls:
                offered = frozenset(str(tool["function"]["name"]) for tool in tools)
        return Markup(
            reasoning_start=self.reasoning_start if apart else "",
            reasoning_end=self.reasoning_end if apart else "",
            in_reasoning=apart and self.opened_by(prompt_end),
            call_start=self.call_start,
            call_end=self.call_end,
            parse=parse,
            offered=offered,
            dropped=self.dropped,
            special_ids=self.special_ids | self.call_ids if parse else self.special_ids,
        )


def load_markup(model_dir: Path, template: ChatTemplate, tokenizer: Tokenizer) -> ModelMarkup:
    """Find out the markup of the model in `model_dir`.

    A model whose template mentions neither reasoning nor tools is not looked at any closer.
    """
    if not template.exists:
        return ModelMarkup()
    sources = _find_sources(model_dir)
    source = sources.get("tool_use") or sources.get("default", "")
    model = _ForMlxLm(tokenizer, source)
    said = "".join(sources.values()).casefold()
    start = end = ""
    dropped: tuple[str, ...] = ()
    if "think" in said:
        start, end, dropped = inferred_reasoning(model)
    call_start = call_end = code = ""
    parser: ToolParser | None = None
    if "tool" in said:
        named = read_json(model_dir, "tokenizer_config.json").get("tool_parser_type")
        call_start, call_end, parser = inferred_tool_calls(model, named)
        code = _source(parser)
    written = {
        token: content
        for token in tokenizer.special_ids
        if (content := tokenizer.token_bytes(token).decode(errors="replace"))
    }

    def ids_in(*texts: str) -> frozenset[int]:
        return frozenset(i for i, content in written.items() if any(content in t for t in texts))

    return ModelMarkup(
        reasoning_start=start,
        reasoning_end=end,
        call_start=call_start,
        call_end=call_end,
        parser=parser,
        dropped=dropped,
        special_ids=ids_in(start, end, *dropped),
        call_ids=ids_in(call_start, call_end, code),
        json_calls=calls_are_json(parser),
    )


def thinking_option(template: ChatTemplate) -> str | None:
    """The variable by which a template is told whether the model reasons, if it has one."""
    return next((name for name in _THINKING_OPTIONS if _reads(template, name)), None)


def _reads(template: ChatTemplate, option: str) -> bool:
    # A template refuses an option that it never reads before it looks at anything else.
    try:
        template.render([{"role": "user", "content": "?"}], template_options={option: True})
    except UnsupportedParameter:
        return False
    except HeadraceError:
        pass
    return True


def _with_tools(parser: ToolParser, tools: list[Mapping[str, Any]]) -> Callable[[str], object]:
    return lambda text: parser(text, tools)


def _source(parser: ToolParser | None) -> str:
    """The code of a parser, without the backslashes of its patterns.

    It names every token that a call may be written with, also those between the markers.
    """
    module = inspect.getmodule(parser)
    if module is None:
        return ""
    try:
        return inspect.getsource(module).replace("\\", "")
    except OSError:
        return ""


class _ForMlxLm:
    """A tokenizer as mlx-lm's rules want to see it."""

    def __init__(self, tokenizer: Tokenizer, chat_template: str) -> None:
        self._tokenizer = tokenizer
        self.chat_template = chat_template

    def get_vocab(self) -> _ForMlxLm:
        return self

    def __contains__(self, piece: str) -> bool:
        return len(self.encode(piece)) == 1

    def __getitem__(self, piece: str) -> int:
        return self.encode(piece)[0]

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return self._tokenizer.encode(text, add_special=add_special_tokens)
