"""Sets reasoning and tool calls apart from the text while it streams. Pure.

The states and their changes are those of mlx-lm's server: text, reasoning, and a tool call, which
ends the reasoning that it stands in. A call that is a JSON object is sent in parts, from the moment
that its name and the beginning of its arguments are known; what was sent of it stands. Any other
is known when its end has come, and is sent whole. What only looked like a call goes back to where
it stood, its markers included: nothing is lost. The result depends on the output alone and not on
how it was cut. Never raises.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace_runner.engine.text.calls import JsonCall, ToolCallPart, join, read_calls
from headrace_runner.engine.text.stop import Finder
from headrace_runner.models.markup import Markup

__all__ = ["Markup", "Parts", "Splitter", "ToolCallPart"]


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
        # Of the call under way, which has begun but not ended, the text that was not sent.
        self._call: list[str] | None = None
        self._reader: JsonCall | None = None
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
        """Whether a call is under way of which nothing is known yet."""
        return self._call is not None and not self._is_sent

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
                self._go_on(parts, free)
                if marker is not None:
                    self._pass_in_call(parts, marker)
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
            # Behind the arguments it is a marker that was begun.
            if self._reader is None or not self._reader.ended:
                self._go_on(parts, held)
            self._end_call(parts, "", cut=cut)
        return parts

    @property
    def _is_sent(self) -> bool:
        """Whether a part of the call under way has been sent."""
        return self._reader is not None and self._reader.begun

    def _add(self, parts: Parts, text: str) -> None:
        if self._reasoning:
            parts.reasoning += text
        else:
            parts.text += text

    def _pass(self, marker: str) -> None:
        """Change the state by a marker of text or of reasoning."""
        if marker == self._markup.call_start:
            self._call, self._call_size = [], len(marker)
            offered = self._markup.offered
            self._reader = None if offered is None else JsonCall(offered)
        elif marker not in self._markup.dropped:
            self._reasoning = not self._reasoning
        self._finder = self._finder_here()

    def _finder_here(self, *, calls: bool = True) -> Finder:
        """What looks for the markers of the present state. It begins anew whenever it is left."""
        markup = self._markup
        if self._call is not None:
            markers = [markup.call_end, markup.call_start if self._reader else ""]
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

    def _go_on(self, parts: Parts, text: str) -> None:
        """Take more of the call under way."""
        assert self._call is not None
        reader, begun = self._reader, self._is_sent
        if reader is not None:
            arguments, text = reader.push(text)
            if arguments:
                self._add_part(parts, reader, arguments, first=not begun)
                self._call, self._call_size = [], 0
        self._call.append(text)
        self._call_size += len(text)

    def _add_part(self, parts: Parts, reader: JsonCall, arguments: str, *, first: bool) -> None:
        if first:
            part = ToolCallPart(self.calls, arguments, reader.id, reader.name)
            self.calls += 1
            self._reasoning = False
        else:
            part = ToolCallPart(self.calls - 1, arguments)
        join(parts.tool_calls, [part])

    def _pass_in_call(self, parts: Parts, marker: str) -> None:
        """Go on by a marker that stands in a call."""
        if marker == self._markup.call_end:
            self._end_call(parts, marker)
        elif not self._is_sent or (self._reader and self._reader.in_string):
            self._go_on(parts, marker)
        else:  # The call has lost its end, and the next one begins.
            self._end_call(parts, "")
            self._pass(marker)

    def _end_call(self, parts: Parts, end: str, *, cut: bool = False) -> None:
        assert self._call is not None
        body, reader = "".join(self._call), self._reader
        self._call, self._call_size, self._reader = None, 0, None
        if reader is not None and reader.begun:
            if not reader.closed_by(body):
                self._add_plain(parts, body)
        elif cut:
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
            calls = read_calls(self._markup.parse(body.strip())) if body.strip() else []
        except Exception:  # noqa: BLE001 - a parser raises whatever its input leads it to
            return False
        for id_, name, arguments in calls:
            parts.tool_calls.append(ToolCallPart(self.calls, arguments, id_, name))
            self.calls += 1
        if calls:
            self._reasoning = False
        return bool(calls)
