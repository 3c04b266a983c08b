"""Sets reasoning and tool calls apart from the text while it streams. Pure.

The states and their changes are those of mlx-lm's server: text, reasoning, and a tool call, which
ends the reasoning that it stands in. A call is known when its end has come, so it is sent whole.
What only looked like a call goes back to where it stood, its markers included: nothing is lost.
The result depends on the output alone and not on how it was cut. Never raises.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from headrace_runner.engine.text.stop import Finder
from headrace_runner.models.markup import Markup

__all__ = ["Markup", "Parts", "Splitter", "ToolCallPart"]

_NAME = re.compile(r"[^\s<>\x00-\x1f]+")
"""What the name of a function can be at all: a parser that guesses takes prose for one."""
_MAX_BYTES = 256
"""Of a name and of an id, as the contract has it."""


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


@dataclass(slots=True)
class Parts:
    """What a stretch of output turned out to be."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallPart] = field(default_factory=list)


class Splitter:
    """The parts of one choice."""

    def __init__(self, markup: Markup) -> None:
        self._markup = markup
        self._reasoning = markup.in_reasoning
        # The text of the call under way, which has begun but not ended.
        self._call: list[str] | None = None
        self._call_size = 0
        self._finders: dict[tuple[str, ...], Finder] = {}
        self._finder = self._finder_here()
        self.calls = 0
        """Tool calls so far."""

    @property
    def held(self) -> int:
        """Characters that are held back: a possible marker, or a call under way."""
        return self._call_size + self._finder.held

    @property
    def in_call(self) -> bool:
        """Whether a call is under way."""
        return self._call is not None

    def push(self, text: str) -> Parts:
        """Take more output; give what is certain by now."""
        parts, place = Parts(), 0
        while place < len(text):
            free, marker, place = self._finder.push(text, place)
            if self._call is None:
                self._add(parts, free)
                if marker is not None:
                    self._pass(marker)
            else:
                self._call.append(free)
                self._call_size += len(free)
                if marker is not None:
                    self._end_call(parts, marker)
        return parts

    def finish(self, *, cut: bool = False) -> Parts:
        """Give what was held back, at the end of the output.

        `cut`: the end came from outside, so a call under way is not a whole one.
        """
        parts = Parts()
        held = self._finder.finish()
        if self._call is None:
            self._add(parts, held)
        else:
            self._call.append(held)
            self._end_call(parts, "", cut=cut)
        return parts

    def _add(self, parts: Parts, text: str) -> None:
        if self._reasoning:
            parts.reasoning += text
        else:
            parts.text += text

    def _pass(self, marker: str) -> None:
        """Change the state by a marker of text or of reasoning."""
        if marker == self._markup.call_start:
            self._call, self._call_size = [], len(marker)
        elif marker not in self._markup.dropped:
            self._reasoning = not self._reasoning
        self._finder = self._finder_here()

    def _finder_here(self, *, calls: bool = True) -> Finder:
        """What looks for the markers of the present state. It begins anew whenever it is left."""
        markup = self._markup
        if self._call is not None:
            markers = [markup.call_end]
        elif self._reasoning:
            markers = [markup.reasoning_end]
        else:
            markers = [markup.reasoning_start, *markup.dropped]
        if calls and self._call is None and markup.parse is not None:
            markers.append(markup.call_start)
        key = tuple(marker for marker in markers if marker)
        if key not in self._finders:
            self._finders[key] = Finder(key)
        return self._finders[key]

    def _end_call(self, parts: Parts, end: str, *, cut: bool = False) -> None:
        assert self._call is not None
        body = "".join(self._call)
        self._call, self._call_size = None, 0
        if cut:
            self._add_plain(parts, self._markup.call_start + body)
        elif not self._add_calls(parts, body):
            self._add_failed(parts, body, end)
        self._finder = self._finder_here()

    def _add_failed(self, parts: Parts, body: str, end: str) -> None:
        """Add what was no call. Its beginning may have been a mere mention of the marker, so the
        last beginning gets a try of its own: one, that the work stays linear."""
        start = self._markup.call_start
        before, again, last = body.rpartition(start)
        if not again:
            self._add_plain(parts, start + body + end)
            return
        self._add_plain(parts, start + before)
        if not self._add_calls(parts, last):
            self._add_plain(parts, start + last + end)

    def _add_plain(self, parts: Parts, text: str) -> None:
        """Add text in which no call begins."""
        place = 0
        while place < len(text):
            finder = self._finder_here(calls=False)
            free, marker, place = finder.push(text, place)
            self._add(parts, free + finder.finish())
            if marker is not None:
                self._pass(marker)

    def _add_calls(self, parts: Parts, body: str) -> bool:
        """Add the calls that `body` holds; False if it is malformed."""
        assert self._markup.parse is not None
        try:
            calls = _read(self._markup.parse(body.strip())) if body.strip() else []
        except Exception:  # noqa: BLE001 - a parser raises whatever its input leads it to
            return False
        for id_, name, arguments in calls:
            parts.tool_calls.append(ToolCallPart(self.calls, arguments, id_, name))
            self.calls += 1
        if calls:
            self._reasoning = False
        return bool(calls)


def _read(found: Any) -> list[tuple[str | None, str, str]]:
    """What a parser found, as ids, names and JSON objects. Raises anything if it is no call."""
    calls = []
    for call in found if isinstance(found, list) else [found]:
        name, id_ = call["name"], call.get("id")
        if not _NAME.fullmatch(name) or len(name.encode()) > _MAX_BYTES:
            raise ValueError("no name of a function")
        if not isinstance(id_, str) or not 0 < len(id_.encode()) <= _MAX_BYTES:
            id_ = None
        calls.append((id_, name, _json_object(call.get("arguments"))))
    return calls


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
