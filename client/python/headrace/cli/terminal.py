"""Which pictures a terminal can show: by the environment where that tells, else it is asked."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import termios
import time
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Final

ANSWER_SECONDS: Final = 0.5
"""How long a terminal may take to say what it can; every one of this century answers."""

_QUERY_KITTY: Final = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\"
_QUERY_ATTRIBUTES: Final = b"\x1b[c"
"""DA1. All terminals answer it, in order: what has not been answered by then will not be."""
_ATTRIBUTES = re.compile(rb"\x1b\[\?([\d;]*)c")
_SIXEL: Final = b"4"
USUAL_CELL: Final = (9, 18)


class Way(StrEnum):
    """How a picture is shown."""

    KITTY = "kitty"
    ITERM2 = "iterm2"
    SIXEL = "sixel"
    BLOCKS = "blocks"
    NONE = "none"


def find_way(environment: Mapping[str, str]) -> Way:
    """The best way on the terminal of this process."""
    if environment.get("TERM", "dumb") in ("dumb", "linux"):
        return Way.BLOCKS
    multiplexed = is_multiplexed(environment)
    told = None if multiplexed else told_by(environment)
    if told is not None:
        return told
    # Where pictures are not known this may end up as the title (tmux) or on the screen.
    alone = multiplexed or environment.get("TERM_PROGRAM") == "Apple_Terminal"
    return understood(ask(_QUERY_ATTRIBUTES if alone else _QUERY_KITTY + _QUERY_ATTRIBUTES))


def is_multiplexed(environment: Mapping[str, str]) -> bool:
    """Whether tmux or screen stands between: then the variables are another terminal's."""
    term = environment.get("TERM", "")
    return bool(environment.get("TMUX")) or term.startswith(("tmux", "screen"))


def told_by(environment: Mapping[str, str]) -> Way | None:
    """The way of a terminal that makes itself known; None where it has to be asked."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if environment.get("KITTY_WINDOW_ID") or term in ("xterm-kitty", "xterm-ghostty"):
        return Way.KITTY
    if program == "ghostty":
        return Way.KITTY
    iterm2 = ("iTerm.app", "WezTerm", "mintty")
    if program in iterm2 or environment.get("LC_TERMINAL") == "iTerm2":
        return Way.ITERM2
    return None


def understood(answer: bytes) -> Way:
    """What a terminal's answer says that it can."""
    if b"\x1b_Gi=31;OK" in answer:
        return Way.KITTY
    attributes = _ATTRIBUTES.search(answer)
    # The first is the class of terminal.
    if attributes is not None and _SIXEL in attributes[1].split(b";")[1:]:
        return Way.SIXEL
    return Way.BLOCKS


def ask(query: bytes, patience: float = ANSWER_SECONDS) -> bytes:
    """What the terminal answers within `patience` seconds, up to its attributes; empty where there
    is none to be asked, or this process runs in its background."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        if os.tcgetpgrp(terminal) != os.getpgrp():
            return b""
        before = termios.tcgetattr(terminal)
        quiet = termios.tcgetattr(terminal)
        quiet[3] &= ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(terminal, termios.TCSANOW, quiet)
        try:
            return answer_of(terminal, query, patience)
        finally:
            termios.tcsetattr(terminal, termios.TCSANOW, before)
    except (OSError, termios.error):
        return b""
    finally:
        os.close(terminal)


def answer_of(terminal: int, query: bytes, patience: float) -> bytes:
    """The same, of a terminal by its descriptor, once it neither waits for lines nor echoes."""
    os.write(terminal, query)
    until = time.monotonic() + patience
    answer = b""
    while not _ATTRIBUTES.search(answer) and (left := until - time.monotonic()) > 0:
        readable, _, _ = select.select([terminal], [], [], left)
        piece = os.read(terminal, 4096) if readable else b""
        if not piece:  # It says no more in time, or has gone.
            break
        answer += piece
    return answer


def cell_size(descriptor: int) -> tuple[int, int]:
    """Pixels of one cell, across and down; a usual size where the terminal does not say."""
    with suppress(OSError):
        answer = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8))
        rows, columns, width, height = struct.unpack("HHHH", answer)
        if rows and columns and width >= columns and height >= rows:
            return width // columns, height // rows
    return USUAL_CELL
