"""Finds stop strings in a stream of text, over the borders of its pieces.

The stop that is complete first ends the text; of several complete at the same character, the
longest. So the result depends on the text alone and not on how it was cut. The search is the
automaton of Aho and Corasick, "Efficient string matching" (1975): time linear in the text,
whatever the stops. Never holds back more than could still begin a stop.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Node:
    """A prefix of some stop string."""

    depth: int
    """Characters in the prefix."""
    edges: dict[str, "_Node"] = field(default_factory=dict)
    fallback: "_Node | None" = None
    """The longest proper suffix of the prefix that begins a stop too; None for the root."""
    stop: str | None = None
    """The longest stop that ends here."""


class StopMatcher:
    """The stop strings of one choice.

    `include_stop` makes the stop itself part of what is emitted.
    """

    def __init__(self, strings: Sequence[str], *, include_stop: bool = False) -> None:
        """Raise ValueError for an empty stop string, which would match everywhere."""
        if "" in strings:
            raise ValueError("a stop string must not be empty")
        self._include_stop = include_stop
        self._root = self._node = _automaton(strings)
        self._held = ""
        self._matched: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text; give what can be emitted now, and the stop once it has come.

        After a stop nothing more is emitted.
        """
        if self._matched is not None:
            return "", self._matched
        pending = self._held + text
        for place, character in enumerate(text, start=len(self._held) + 1):
            self._node = self._advance(character)
            if (stop := self._node.stop) is not None:
                self._matched, self._held = stop, ""
                return pending[: place if self._include_stop else place - len(stop)], stop
        sent = len(pending) - self._node.depth
        self._held = pending[sent:]
        return pending[:sent], None

    def finish(self) -> str:
        """Give what was held back, at the end of a text without a stop."""
        held, self._held, self._node = self._held, "", self._root
        return held

    def _advance(self, character: str) -> _Node:
        node: _Node | None = self._node
        while node is not None:
            if (following := node.edges.get(character)) is not None:
                return following
            node = node.fallback
        return self._root


def _automaton(strings: Sequence[str]) -> _Node:
    root = _Node(depth=0)
    for string in strings:
        node = root
        for character in string:
            node = node.edges.setdefault(character, _Node(node.depth + 1))
        node.stop = string
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
            node.stop = node.stop or node.fallback.stop
    return root
