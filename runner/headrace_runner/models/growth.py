"""How large a string an operation of a chat template would build, without building it. Pure.

Sizes are in characters, or items for lists, and never too low. Each function takes the arguments
of the operation that it is about.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

_NUMBER = re.compile(r"\d+")
_WIDTH_AS_VALUE = re.compile(r"%[-+ #0-9.]*\*")
_LONGEST_NUMBER = 2048
"""Characters that a number may take in a field without a width: 309 for a float, and what integers
of the sandbox's size may have."""


def widest(spec: str) -> int:
    """The largest number in a format, whatever it means there."""
    return max(map(int, _NUMBER.findall(spec)), default=0)


def printf(spec: str, values: Any) -> int:
    """The result of `spec % values`."""
    fields = spec.count("%")
    width = max(widest(spec), _LONGEST_NUMBER)
    if isinstance(values, Mapping):  # A field may name the same value again and again.
        width += max(map(_text_size, values.values()), default=0)
        return len(spec) + fields * width + _text_size(values)
    given = values if isinstance(values, tuple) else (values,)
    if _WIDTH_AS_VALUE.search(spec):
        width += max((abs(v) for v in given if isinstance(v, int)), default=0)
    return len(spec) + fields * width + sum(map(_text_size, given))


def _text_size(value: object) -> int:
    if isinstance(value, int | float):
        return 0  # `_LONGEST_NUMBER` covers it.
    return len(value if isinstance(value, str) else str(value))


def _padded(text: str, width: int = 80, fill: str = " ") -> int:
    return max(len(text), width)


def _tabs_expanded(text: str, tabsize: int = 8) -> int:
    return len(text) + text.count("\t") * tabsize


def _replaced(text: str, old: str, new: str, count: int | None = None) -> int:
    old, new = str(old), str(new)
    return len(text) + text.count(old) * max(0, len(new) - len(old))


def _indented(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> int:
    size = len(width) if isinstance(width, str) else width
    return len(s) + (len(s.splitlines()) + 1) * (size + 1)


def _wrapped(
    s: str,
    width: int = 79,
    break_long_words: bool = True,
    wrapstring: str | None = None,
    break_on_hyphens: bool = True,
) -> int:
    return len(s) * (1 + len(wrapstring or "\n"))


def _batched(value: object, linecount: int, fill_with: object = None) -> int:
    return linecount


def _sliced(value: object, slices: int, fill_with: object = None) -> int:
    return slices


def _of_text(size: Callable[..., int]) -> Callable[..., int]:
    """Filters take anything as text, as methods of strings do not."""
    return lambda value, *args, **kwargs: size(str(value), *args, **kwargs)


METHODS: Mapping[str, Callable[..., int]] = {
    "center": _padded,
    "expandtabs": _tabs_expanded,
    "ljust": _padded,
    "replace": _replaced,
    "rjust": _padded,
    "zfill": _padded,
}
"""Methods of strings whose result can be far larger than what they are given."""

FILTERS: Mapping[str, Callable[..., int]] = {
    "batch": _batched,
    "center": _of_text(_padded),
    "format": _of_text(lambda spec, *args, **kwargs: printf(spec, kwargs or args)),
    "indent": _of_text(_indented),
    "replace": _of_text(_replaced),
    "slice": _sliced,
    "wordwrap": _of_text(_wrapped),
}
"""The same of Jinja2's filters."""
