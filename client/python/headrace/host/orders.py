"""What a spare runner is told once there is a model for it: one line of JSON on its stdin.

Both sides use this module. What follows the line on stdin is not read: its end still means that
the controller has gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SPARE = "--spare"
"""The whole command line of a spare runner."""

_LIMIT = 1 << 20  # bytes


class OrdersError(ValueError):
    """A line is no order."""


@dataclass(frozen=True)
class Orders:
    """How to go on."""

    arguments: Sequence[str]
    """The command line that the runner would otherwise have been started with."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What is added to its environment."""


def encode(orders: Orders) -> bytes:
    """One line, newline included."""
    fields = {"arguments": list(orders.arguments), "environment": dict(orders.environment)}
    # ASCII alone: a path that is not UTF-8 arrives as it was.
    return json.dumps(fields).encode() + b"\n"


def receive(fd: int) -> Orders | None:
    """Wait for the orders on a pipe; None when it ends before they are whole.

    Raises OrdersError when they cannot be understood.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        # One byte at a time: what follows is another reader's.
        byte = os.read(fd, 1)
        if not byte:
            return None
        line += byte
        if len(line) > _LIMIT:
            raise OrdersError("the line is too long")
    return _decode(bytes(line))


def _decode(line: bytes) -> Orders:
    try:
        fields = json.loads(line)
        arguments, environment = fields["arguments"], fields["environment"]
        words = [*arguments, *environment.keys(), *environment.values()]
        if not isinstance(arguments, list) or not all(isinstance(word, str) for word in words):
            raise TypeError("not a list of words and an object of strings")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OrdersError(f"{type(error).__name__}: {error} in {line[:200]!r}") from error
    return Orders(arguments, environment)
