"""What is wrong with a configuration, and where: errors for people to mend. Pure."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake."""

    place: str
    """The file, with the line where one is known; or a variable of the environment."""
    line: int
    """Of the file; 0 where there is none."""
    what: str
    """The key, what was found, and what would be right."""

    def __str__(self) -> str:
        return (
            f"{self.place}:{self.line}: {self.what}" if self.line else f"{self.place}: {self.what}"
        )


class ConfigError(Exception):
    """The configuration cannot be used. Its text has a line for each mistake."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(map(str, self.problems)))


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that was most likely meant; empty where none is near."""
    found = difflib.get_close_matches(name.lower().replace("-", "_"), sorted(known), 1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def line_of(text: str, path: Sequence[str]) -> int:
    """The line of valid TOML, from 1, on which the value at `path` begins.

    The parser does not tell. But what stands up to a line, and as much more as makes it whole, is
    TOML too: the line is the first with which the value is there.
    """
    lines = text.splitlines(keepends=True)
    low, high = 1, len(lines)
    while low < high:
        middle = (low + high) // 2
        if _has(_whole(lines, middle), path):
            high = middle
        else:
            low = middle + 1
    return low


def _whole(lines: Sequence[str], count: int) -> dict[str, Any]:
    """The first `count` lines, and those that end a value over several lines."""
    while True:
        try:
            return tomllib.loads("".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            count += 1
            if count > len(lines):
                raise


def _has(table: object, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(table, dict) or key not in table:
            return False
        table = table[key]
    return True
