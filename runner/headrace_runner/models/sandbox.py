"""The Jinja2 environment that chat templates run in.

A template comes with a model and is not trusted: it reaches none of Python's insides, and every
render has a budget of steps, size and time. It offers what transformers offers to templates, so
that the same template renders the same text. It never sees anything but plain data.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial, wraps
from typing import Any, cast

from jinja2 import TemplateError, nodes, pass_context, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from headrace_runner.models import growth

MAX_STEPS = 1_000_000
"""Passes through loops, and calls, in one render."""
MAX_SECONDS = 10.0
"""Time for one render."""
MAX_SIZE = 64 * 1024 * 1024
"""Characters or items in anything that a template builds."""
MAX_BITS = 4096
"""Size of a product of numbers: multiplying huge ones takes for ever."""
MAX_INDENT = 32
"""Spaces, or characters, that JSON is indented by at each level."""

_NOT_OFFERED = frozenset({"encode", "to_bytes", "translate"})
"""Methods that build what has no bound here, and that no template needs."""

# No template can read or write these: they are no identifiers.
_BUDGET = "render budget"
_COUNTED = "counted"
_JOINED = "joined"


class TemplateLimitError(TemplateError):
    """The template asked for more than one render may use."""


class TemplateRefusalError(TemplateError):
    """The template refused its input with `raise_exception`."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates. Render them with `new_budget()` among the variables."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        self.concat = _bounded_concat  # type: ignore[method-assign]
        self.filters |= {
            "join": _join,
            "tojson": _to_json,
            _COUNTED: _counted,
            _JOINED: lambda parts: _bounded_concat(map(str, parts)),
        }
        self.filters |= {
            name: _bounded(self.filters[name], growth.FILTERS[name]) for name in growth.FILTERS
        }
        del self.globals["lipsum"]  # As much text as one asks for.
        self.globals |= {
            "namespace": _SafeNamespace,
            "raise_exception": _raise_exception,
            "strftime_now": lambda pattern: datetime.now().astimezone().strftime(pattern),
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Guard().visit(super()._parse(source, name, filename))
        return template

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse an operation whose result would be huge, before it is carried out."""
        if operator == "**":
            raise SecurityError("it uses powers")
        if operator == "+":
            _check_size(_size(left) + _size(right))
        elif operator == "%":
            if isinstance(left, str):
                _check_size(growth.printf(left, right))
        else:
            _check_size(_size(left) * right if isinstance(right, int) else 0)
            _check_size(_size(right) * left if isinstance(left, int) else 0)
            if isinstance(left, int) and isinstance(right, int):
                _check_size(left.bit_length() + right.bit_length(), MAX_BITS)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Count every call, so that macros that call themselves come to an end."""
        context[_BUDGET].step()
        result = super().call(context, _bounded_method(obj), *args, **kwargs)
        _check_size(_size(result))
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Keep a few methods out, beside those that Jinja2 does."""
        return attr not in _NOT_OFFERED and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Give a bounded `str.format` or `str.format_map` in place of Python's."""
        if super().wrap_str_format(value) is None:
            return None
        text = str(value.__self__)
        if value.__name__ == "format_map":
            return lambda values: _Formatter(self).vformat(text, (), values)
        return lambda *args, **kwargs: _Formatter(self).vformat(text, args, kwargs)


def new_budget() -> dict[str, Any]:
    """Give the variable that one render in a ChatEnvironment needs beside its own."""
    return {_BUDGET: _Budget()}


class _Budget:
    def __init__(self) -> None:
        self._steps = MAX_STEPS
        self._deadline = time.monotonic() + MAX_SECONDS

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0 or time.monotonic() > self._deadline:
            raise TemplateLimitError("it does not come to an end")


def _size(value: object) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _check_size(size: int, limit: int = MAX_SIZE) -> None:
    if size > limit:
        raise TemplateLimitError("it builds a value that is too large")


def _bounded_concat(parts: Iterable[str]) -> str:
    kept, size = [], 0
    for part in parts:
        size += len(part)
        _check_size(size)
        kept.append(part)
    return "".join(kept)


def _separated(separator: str, items: Iterable[str]) -> Iterator[str]:
    for index, item in enumerate(items):
        if index:
            yield separator
        yield item


@pass_environment
def _join(
    environment: "ChatEnvironment",
    value: Iterable[Any],
    d: str = "",
    attribute: str | int | None = None,
) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return _bounded_concat(_separated(str(d), map(str, value)))


def _bounded(function: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
    """Let a function build no more than may be; `size` foretells it."""

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        # Jinja2 gives some filters its environment or context in front.
        first = 1 if hasattr(function, "jinja_pass_arg") else 0
        _check_size(size(*args[first:], **kwargs))
        return function(*args, **kwargs)

    return checked


def _bounded_method(method: Any) -> Any:
    """Let a string's method build no more than may be; anything else is given back as it is."""
    name, text = getattr(method, "__name__", ""), getattr(method, "__self__", None)
    if isinstance(text, str):
        if name == "join":
            return lambda items: _bounded_concat(_separated(text, items))
        if name in growth.METHODS:
            return _bounded(method, partial(growth.METHODS[name], text))
    return method


class _Formatter(SandboxedFormatter):
    """Formats one string, whose fields together may not grow too large."""

    def __init__(self, environment: ChatEnvironment) -> None:
        super().__init__(environment)
        self._size = 0

    def format_field(self, value: Any, format_spec: str) -> str:
        _check_size(growth.widest(format_spec))
        text: str = super().format_field(value, format_spec)
        self._size += len(text)
        _check_size(self._size)
        return text


class _Counted:
    """An iterable whose passes are counted; as long as what it wraps."""

    def __init__(self, items: Any, budget: _Budget) -> None:
        self._items, self._budget = items, budget

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._budget.step()
            yield item


@pass_context
def _counted(context: Context, items: Any) -> _Counted:
    return _Counted(items, context[_BUDGET])


class _Guard(NodeTransformer):
    """Puts the budget into a template: counts loops and bounds the `~` operator."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filtered(cast("nodes.Expr", node.iter), _COUNTED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _GenerationTag(Extension):
    """Accepts {% generation %} … {% endgeneration %}, a mark for training, as its body."""

    tags = {"generation"}  # noqa: RUF012 - declared so by Jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _SafeNamespace(Namespace):
    """A namespace without underscored attributes, which could pose as Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # Like Jinja2's: no named parameter, so that `namespace(self=…)` works.
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"it sets the attribute {name!r}")


def _raise_exception(message: object) -> None:
    raise TemplateRefusalError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as it is: Jinja2's own filter escapes it for HTML."""
    if indent is not None:
        _check_size(indent if isinstance(indent, int) else len(indent), MAX_INDENT)
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
