"""Finds strings in a stream of text, over the borders of its pieces: stops, and other markers.

The string that is complete first is found; of several complete at the same character, the
longest. So the result depends on the text alone and not on how it was cut. The search is the
automaton of Aho and Corasick, "Efficient string matching" (1975): time linear in the text,
whatever the strings. Never holds back more than could still begin one of them.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Node:
    """A prefix of some string."""

    depth: int
    """Characters in the prefix."""
    edges: dict[str, "_Node"] = field(default_factory=dict)
    fallback: "_Node | None" = None
    """The longest proper suffix of the prefix that begins a string too; None for the root."""
    found: str | None = None
    """The longest string that ends here."""


class Finder:
    """Looks for the first of several strings."""

    def __init__(self, strings: Iterable[str]) -> None:
        """Raise ValueError for an empty string, which would be found everywhere."""
        self._root = self._node = _automaton(strings)
        self._held = ""

    @property
    def held(self) -> int:
        """Characters that are held back, since they may begin one of the strings."""
        return len(self._held)

    def push(self, text: str, start: int = 0) -> tuple[str, str | None, int]:
        """Take more text, from `start` on; give what is free of the strings, the first string,
        and the place in `text` behind it.

        What follows has not been searched. The next push begins a new search.
        """
        if not self._root.edges:
            return text[start:], None, len(text)
        for place in range(start, len(text)):
            self._node = self._advance(text[place])
            if (found := self._node.found) is not None:
                pending = self._held + text[start : place + 1]
                self._node, self._held = self._root, ""
                return pending.removesuffix(found), found, place + 1
        pending = self._held + text[start:]
        free = len(pending) - self._node.depth
        self._held = pending[free:]
        return pending[:free], None, len(text)

    def finish(self) -> str:
        """Give what was held back, at the end of the text."""
        held, self._held, self._node = self._held, "", self._root
        return held

    def _advance(self, character: str) -> _Node:
        node: _Node | None = self._node
        while node is not None:
            if (following := node.edges.get(character)) is not None:
                return following
            node = node.fallback
        return self._root


class StopMatcher:
    """The stop strings of one choice.

    `include_stop` makes the stop itself part of what is emitted.
    """

    def __init__(self, strings: Sequence[str], *, include_stop: bool = False) -> None:
        """Raise ValueError for an empty stop string, which would match everywhere."""
        self._finder = Finder(strings)
        self._include_stop = include_stop
        self._matched: str | None = None

    @property
    def held(self) -> int:
        """Characters that are held back, since they may begin a stop."""
        return self._finder.held

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text; give what can be emitted now, and the stop once it has come.

        After a stop nothing more is emitted.
        """
        if self._matched is not None:
            return "", self._matched
        free, self._matched, _ = self._finder.push(text)
        if self._include_stop and self._matched is not None:
            free += self._matched
        return free, self._matched

    def finish(self) -> str:
        """Give what was held back, at the end of a text without a stop."""
        return self._finder.finish()


def _automaton(strings: Iterable[str]) -> _Node:
    root = _Node(depth=0)
    for string in strings:
        if not string:
            raise ValueError("a stop string must not be empty")
        node = root
        for character in string:
            node = node.edges.setdefault(character, _Node(node.depth + 1))
        node.found = string
    # Breadth first, so that a shorter prefix is always complete before a longer one needs it.
    waiting = deque([root])
    while waiting:
        parent = waiting.popleft()
        for character, node in parent.edges.items():
            waiting.append(node)
            suffix = parent.fallback
            while suffix is not None and character not in suffix.edges:
                suffix = suffix.fallback
            node.fallback = root if suffix is None else suffix.edges[character]
            node.found = node.found or node.fallback.found
    return root
