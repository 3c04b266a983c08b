"""The contract's enums as the SDK's own."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

_E = TypeVar("_E", bound=StrEnum)


def enum_of(kind: type[_E], name_of: Callable[[Any], str], number: int, prefix: str) -> _E:
    """The member for a number, whose name has a prefix in the contract."""
    # A value that a newer server has added becomes UNKNOWN instead of an error.
    try:
        return kind(name_of(number).removeprefix(prefix).lower())
    except ValueError:
        return kind("unknown")
