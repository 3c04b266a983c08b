"""What is expected of an answer, as data.

A pattern is JSON. An object matches an object that has its keys, and maybe others; a list one of
the same length; anything else itself. An object with one of these keys alone is special:

| key | matches |
| --- | --- |
| `$any` | anything that is there |
| `$re` | a text in which the expression is found |
| `$ge`, `$le` | a number, or a 64-bit integer as Protobuf's JSON writes it, so large or so small |
| `$has` | a list of which some element matches |
| `$last` | a list whose last element matches |
| `$repeat` | in requests: `["text", 3]` stands for that text three times over |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any


def mismatch(pattern: Any, value: Any, at: str = "") -> str:
    """Where and how a value differs from a pattern; empty where it does not."""
    if isinstance(pattern, dict):
        if len(pattern) == 1 and next(iter(pattern)).startswith("$"):
            ((key, wanted),) = pattern.items()
            holds = _SPECIAL[key](wanted, value)
            return "" if holds else f"{at or 'the answer'}: {value!r} is not {key} {wanted!r}"
        if not isinstance(value, dict):
            return f"{at or 'the answer'}: {value!r} is no object"
        for key, wanted in pattern.items():
            if key not in value:
                return f"{at}.{key} is missing in {_short(value)}"
            if found := mismatch(wanted, value[key], f"{at}.{key}"):
                return found
        return ""
    if isinstance(pattern, list):
        if not isinstance(value, list) or len(value) != len(pattern):
            return f"{at}: {_short(value)} has not the {len(pattern)} elements of {_short(pattern)}"
        faults = (
            mismatch(p, v, f"{at}[{i}]")
            for i, (p, v) in enumerate(zip(pattern, value, strict=True))
        )
        return next(filter(None, faults), "")
    return "" if pattern == value else f"{at or 'the answer'}: {value!r} is not {pattern!r}"


def expanded(request: Any) -> Any:
    """A request with its repetitions written out."""
    if isinstance(request, dict):
        if set(request) == {"$repeat"}:
            text, times = request["$repeat"]
            return text * times
        return {key: expanded(value) for key, value in request.items()}
    if isinstance(request, list):
        return [*map(expanded, request)]
    return request


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 600 else f"{text[:300]} … {text[-300:]}"


_SPECIAL: Mapping[str, Callable[[Any, Any], bool]] = {
    "$any": lambda wanted, value: True,
    "$re": lambda wanted, value: isinstance(value, str) and bool(re.search(wanted, value)),
    "$ge": lambda wanted, value: float(value) >= wanted,
    "$le": lambda wanted, value: float(value) <= wanted,
    "$has": lambda wanted, value: any(not mismatch(wanted, each) for each in value),
    "$last": lambda wanted, value: bool(value) and not mismatch(wanted, value[-1]),
}
