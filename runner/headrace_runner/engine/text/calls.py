"""What a tool call is: one that has come whole, and one that is still being written. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Set
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any

_NAME = re.compile(r"[^\s<>\x00-\x1f]+")
"""What the name of a function can be at all: a parser that guesses takes prose for one."""
_MAX_BYTES = 256
"""Of a name and of an id, as the contract has it."""
_MAX_HEAD = 4096
"""Characters before the arguments of a call that is sent in parts, at most."""
_INNER = 2
"""Braces and brackets that are open in the arguments, at the least."""
_OUTSIDE = re.compile(r'["{}\[\]]')
_WITHIN = re.compile(r'["\\]')


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A piece of a tool call."""

    index: int
    arguments: str
    """Text to append to the arguments' JSON."""
    id: str | None = None
    """In the first piece, if the model gave the call one of its own."""
    name: str | None = None
    """In the first piece."""


def join(parts: list[ToolCallPart], later: list[ToolCallPart]) -> None:
    """Appends what follows: what goes on with the last call becomes one piece with it."""
    for part in later:
        if parts and parts[-1].index == part.index:
            last = parts.pop()
            part = replace(last, arguments=last.arguments + part.arguments)
        parts.append(part)


def read_calls(found: Any) -> list[tuple[str | None, str, str]]:
    """What a parser found, as ids, names and JSON objects. Raises anything if it is no call."""
    calls = []
    for call in found if isinstance(found, list) else [found]:
        if not _is_name(call["name"]):
            raise ValueError("no name of a function")
        calls.append((_id(call), call["name"], _json_object(call.get("arguments"))))
    return calls


class _Place(Enum):
    """Where in a call its reader is."""

    HEAD = auto()
    """Before the arguments."""
    ARGUMENTS = auto()
    BEHIND = auto()
    UNKNOWN = auto()
    """In what only the end will tell."""


class JsonCall:
    """Reads `{"name": "f", "arguments": {…}}` while it is being written.

    Its arguments can be sent as they come, once they have begun and the name before them is one of
    those on offer. They end where their braces do. Their text is the model's own: it is JSON where
    the model wrote JSON, and never is before it has ended.
    """

    def __init__(self, offered: Set[str]) -> None:
        self._offered = offered
        self._place = _Place.HEAD
        self._head = ""
        self._depth = 0
        self._in_string = self._escaped = False
        self.id: str | None = None
        """The model's own, where it comes before the arguments."""
        self.name = ""
        """Empty until the arguments have begun."""

    @property
    def begun(self) -> bool:
        """Whether the arguments have begun."""
        return self._place in (_Place.ARGUMENTS, _Place.BEHIND)

    @property
    def ended(self) -> bool:
        """Whether the arguments have ended."""
        return self._place is _Place.BEHIND

    @property
    def in_string(self) -> bool:
        """Whether a string of the arguments is open: anything may stand in it."""
        return self._place is _Place.ARGUMENTS and self._in_string

    def push(self, text: str) -> tuple[str, str]:
        """Takes more; gives what of it are arguments, and what stands before or behind them."""
        match self._place:
            case _Place.HEAD:
                return self._push_head(text)
            case _Place.ARGUMENTS:
                return self._push_arguments(text, 0)
        return "", text

    def closed_by(self, rest: str) -> bool:
        """Whether what followed the arguments is no more than the rest of the call's JSON."""
        if rest.strip() in ("", "}"):
            return True
        try:
            call = json.loads(self._head + "{}" + rest)
        except (ValueError, RecursionError):
            return False
        return bool(call["name"] == self.name and call["arguments"] == {})

    def _push_head(self, text: str) -> tuple[str, str]:
        place = 0
        while (mark := self._next(text, place)) is not None:
            start, place = mark.span()
            if mark[0] == "{" and self._depth == _INNER and self._follows_key(text[:start]):
                self._open(self._head + text[:start])
                if self._place is _Place.ARGUMENTS:
                    return self._push_arguments(text[start:], 1)
                return "", text
        self._head += text
        if len(self._head) > _MAX_HEAD:
            self._head, self._place = "", _Place.UNKNOWN
        return "", text

    def _push_arguments(self, text: str, place: int) -> tuple[str, str]:
        while (mark := self._next(text, place)) is not None:
            place = mark.end()
            if self._depth < _INNER:
                self._place = _Place.BEHIND
                return text[:place], text[place:]
        return text, ""

    def _next(self, text: str, place: int) -> re.Match[str] | None:
        """The next quote, brace, bracket or escape that counts, from a place on."""
        if self._escaped and place < len(text):
            self._escaped, place = False, place + 1
        mark = (_WITHIN if self._in_string else _OUTSIDE).search(text, place)
        match mark and mark[0]:
            case "\\":
                self._escaped = True
            case '"':
                self._in_string = not self._in_string
            case "{" | "[":
                self._depth += 1
            case "}" | "]":
                self._depth -= 1
        return mark

    def _follows_key(self, text: str) -> bool:
        """Whether what follows this, after the head so far, is the value of `arguments`."""
        if len(self._head) + len(text) > _MAX_HEAD:
            return False
        before = (self._head + text).rstrip()
        return before.endswith(":") and before[:-1].rstrip().endswith('"arguments"')

    def _open(self, head: str) -> None:
        """Lets the arguments begin after this head, if it is one of a call on offer. JSON is to
        judge that: names may have escapes, and keys may come twice."""
        self._head, self._place = head, _Place.UNKNOWN
        try:
            call = json.loads(head + "{}}")
            offered = call["arguments"] == {} and call["name"] in self._offered
            if offered and _is_name(call["name"]):
                self.id, self.name, self._place = _id(call), call["name"], _Place.ARGUMENTS
        except (ValueError, TypeError, LookupError, RecursionError):
            return


def _is_name(name: Any) -> bool:
    return bool(_NAME.fullmatch(name)) and len(name.encode()) <= _MAX_BYTES


def _id(call: Any) -> str | None:
    id_ = call.get("id")
    return id_ if isinstance(id_, str) and 0 < len(id_.encode()) <= _MAX_BYTES else None


def _json_object(value: object) -> str:
    if isinstance(value, str):
        value = json.loads(value)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise TypeError("arguments are an object")
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can only escape
        text = json.dumps(value, allow_nan=False)
    return text
