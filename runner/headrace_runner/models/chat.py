"""A model's chat template: a conversation to the prompt that the model was trained on.

Takes plain data (dicts, lists, strings) in the form that Hugging Face templates expect. Tools,
calls of tools and options that the template never reads are refused instead of left out. All else
is the template's to decide: which roles it knows, and what it does with a name or a reasoning.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import (
    FieldViolation,
    InvalidRequest,
    ModelCorrupt,
    UnsupportedCapability,
    UnsupportedParameter,
)
from headrace_runner.models.files import read_json, read_text

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, Any]
"""`role` and `content`; maybe `name`, `reasoning_content`, `tool_calls`, `tool_call_id`."""

_MAX_QUOTED = 500


class ChatTemplate:
    """The chat template of one model, or its absence. Safe to use from several threads."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """Take templates by name: "default", and maybe "tool_use" for requests with tools.

        `special_tokens` are variables such as "bos_token". Nothing is compiled before it is used.
        """
        self._default = _Compiled(sources["default"]) if "default" in sources else None
        self._tool_use = _Compiled(sources["tool_use"]) if "tool_use" in sources else self._default
        self._special_tokens = dict(special_tokens)

    @classmethod
    def load(cls, model_dir: Path, special_tokens: Mapping[str, str]) -> "ChatTemplate":
        """Load the template of a model directory, from any of the places where one may be.

        Raises ModelCorrupt naming the file that cannot be read.
        """
        return cls(_find_sources(model_dir), special_tokens)

    @property
    def exists(self) -> bool:
        """Whether the model can chat at all."""
        return self._default is not None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_options: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        field: str = "chat",
    ) -> str:
        """Render a conversation; `field` is its path in the request, for errors.

        Raises InvalidRequest naming the message that the template refuses, UnsupportedParameter
        for what it would leave out, and UnsupportedCapability where there is no usable template.
        """
        template = self._tool_use if tools else self._default
        if template is None:
            raise UnsupportedCapability(
                "the model has no chat template; send a prompt or token ids instead of a chat",
                capability="chat",
            )
        options = dict(template_options or {})
        self._check_options(template, options, field)
        _check_tools(template, messages, tools, field)
        variables = {
            **self._special_tokens,
            **options,
            "tools": list(tools) or None,
            "add_generation_prompt": add_generation_prompt,
        }
        return _render(template, messages, variables, field)

    def _check_options(self, template: "_Compiled", options: Mapping[str, Any], field: str) -> None:
        for name in options:
            path = f"{field}.template_options.{name}"
            if name in {"messages", "tools", "add_generation_prompt", *self._special_tokens}:
                raise invalid_field(path, "is set by the request itself and cannot be an option")
            if name not in template.variables:
                raise UnsupportedParameter(
                    field=path,
                    message=f"the model's chat template has no option {name!r}; leave it out",
                )


class _Compiled:
    """One template's source, compiled on first use: importing Jinja2 costs start-up time."""

    def __init__(self, source: str) -> None:
        self.source = source

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template reads from outside."""
        from jinja2.meta import find_undeclared_variables

        return frozenset(find_undeclared_variables(self.template.environment.parse(self.source)))

    def compile(self) -> None:
        """Compile now; raises UnsupportedCapability for a template with a fault of its own."""
        _ = self.template

    @cached_property
    def template(self) -> "Template":
        from jinja2 import TemplateSyntaxError

        from headrace_runner.models.sandbox import ChatEnvironment

        try:
            return ChatEnvironment().from_string(self.source)
        except (TemplateSyntaxError, RecursionError) as error:
            raise _unusable(error) from error

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        from headrace_runner.models.sandbox import new_budget

        return self.template.render({**variables, **new_budget(), "messages": list(messages)})


def _find_sources(model_dir: Path) -> dict[str, str]:
    sources = _declared(model_dir, "chat_template.json")
    sources |= _declared(model_dir, "tokenizer_config.json")
    for path in sorted(model_dir.glob("additional_chat_templates/*.jinja")):
        sources[path.stem] = read_text(path.parent, path.name) or ""
    default = read_text(model_dir, "chat_template.jinja")
    return sources if default is None else sources | {"default": default}


def _declared(model_dir: Path, name: str) -> dict[str, str]:
    """Read the key `chat_template`: one template, or a list of named ones."""
    match read_json(model_dir, name).get("chat_template"):
        case None:
            return {}
        case str(source):
            return {"default": source}
        case list(entries):
            try:
                sources = {entry["name"]: entry["template"] for entry in entries}
            except (TypeError, KeyError) as error:
                raise ModelCorrupt(file=name) from error
            if all(isinstance(text, str) for text in (*sources, *sources.values())):
                return sources
    raise ModelCorrupt(file=name)


def _check_tools(
    template: _Compiled,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    field: str,
) -> None:
    if tools and "tools" not in template.variables:
        raise UnsupportedParameter(
            field=f"{field}.tools",
            message="the model's chat template knows no tools; leave them out",
        )
    for index, message in enumerate(messages):
        if message.get("tool_calls") and "tool_calls" not in template.source:
            raise UnsupportedParameter(
                field=f"{field}.messages[{index}].tool_calls",
                message="the model's chat template knows no tool calls; put them into the content",
            )


def _render(
    template: _Compiled, messages: Sequence[Message], variables: Mapping[str, Any], field: str
) -> str:
    from jinja2.exceptions import SecurityError

    from headrace_runner.models.sandbox import TemplateLimitError, TemplateRefusalError

    template.compile()
    try:
        prompt = template.render(messages, variables)
        prompt.encode()
        return prompt
    except TemplateRefusalError as refusal:
        raise _refused(template, messages, variables, field, str(refusal)) from refusal
    except UnicodeEncodeError as error:
        raise invalid_field(field, "holds half of a surrogate pair, which is no text") from error
    except (SecurityError, TemplateLimitError, RecursionError, MemoryError, OverflowError) as error:
        raise _unusable(error) from error
    except Exception as error:  # a template fails with whatever its expressions raise
        raise invalid_field(
            field, f"cannot be rendered by the model's chat template: {_quoted(error)}"
        ) from error


def _refused(
    template: _Compiled,
    messages: Sequence[Message],
    variables: Mapping[str, Any],
    field: str,
    reason: str,
) -> InvalidRequest:
    """Name the first message that the template refuses for this reason.

    Templates refuse a message when they come to it, so the message is the last of the shortest
    refused beginning of the conversation.
    """
    from headrace_runner.models.sandbox import TemplateRefusalError

    def is_refused(length: int) -> bool:
        try:
            template.render(messages[:length], variables)
        except TemplateRefusalError as refusal:
            return str(refusal) == reason
        except Exception:  # noqa: BLE001 - another fault is not the one looked for
            pass
        return False

    index = bisect_left(range(1, len(messages)), True, key=is_refused)
    path = f"{field}.messages[{index}]" + (".role" if "role" in reason.casefold() else "")
    return invalid_field(path, f"is refused by the model's chat template: {_quoted(reason)}")


def invalid_field(field: str, description: str) -> InvalidRequest:
    """Give the error for one field of a request that breaks a rule."""
    return InvalidRequest(violations=[FieldViolation(field, description)])


def _unusable(error: BaseException) -> UnsupportedCapability:
    return UnsupportedCapability(
        f"the model's chat template cannot be used: {_quoted(error)}", capability="chat"
    )


def _quoted(error: object) -> str:
    return str(error)[:_MAX_QUOTED] or type(error).__name__
