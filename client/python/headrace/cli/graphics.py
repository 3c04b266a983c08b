"""Pictures as what a terminal understands: escape sequences out of bytes and pixels. Pure.

- kitty: https://sw.kovidgoyal.net/kitty/graphics-protocol/
- iTerm2's inline images: https://iterm2.com/documentation-images.html
- sixel: DEC STD 070, chapter 9
- half-blocks: two pixels in a cell, by the colours of its upper and lower half
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from typing import Final

_KITTY_PIECE: Final = 4096
_UPPER: Final = "▀"
_LEAST_ROWS: Final = 12
_LEVELS: Final = (0, 95, 135, 175, 215, 255)
"""Of the 6×6×6 cube of xterm's 256 colours."""

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Raster:
    """A picture's pixels."""

    width: int
    height: int
    data: bytes
    """Red, green and blue of each pixel, row by row."""

    def __getitem__(self, place: tuple[int, int]) -> Colour:
        """The pixel at (x, y)."""
        x, y = place
        at = 3 * (y * self.width + x)
        return self.data[at], self.data[at + 1], self.data[at + 2]


@dataclass(frozen=True, slots=True)
class Paletted:
    """A picture of at most 256 colours."""

    width: int
    height: int
    data: bytes
    """The number of each pixel's colour, row by row."""
    palette: tuple[Colour, ...]


def kitty(png: bytes, columns: int, rows: int) -> str:
    """A PNG file, drawn over so many cells, with the cursor below it. The terminal does not answer
    (q=2): nobody would read that."""
    text = b64encode(png).decode()
    pieces = [text[at : at + _KITTY_PIECE] for at in range(0, len(text), _KITTY_PIECE)]
    head = f"a=T,f=100,q=2,c={columns},r={rows},"
    parts = []
    for number, piece in enumerate(pieces, 1):
        parts.append(f"\x1b_G{head}m={int(number < len(pieces))};{piece}\x1b\\")
        head = ""
    return "".join(parts) + "\n"


def iterm2(file: bytes, columns: int, rows: int) -> str:
    """A file of any format that the terminal reads, drawn over so many cells."""
    arguments = f"inline=1;size={len(file)};width={columns};height={rows};preserveAspectRatio=1"
    return f"\x1b]1337;File={arguments}:{b64encode(file).decode()}\x07\n"


def sixel(picture: Paletted) -> str:
    """Pixels as they are: the caller chooses how many."""
    colours = (
        f"#{number};2;{round(red / 2.55)};{round(green / 2.55)};{round(blue / 2.55)}"
        for number, (red, green, blue) in enumerate(picture.palette)
    )
    head = f'\x1bP0;1;0q"1;1;{picture.width};{picture.height}'
    return f"{head}{''.join(colours)}{'-'.join(_bands(picture))}\x1b\\\n"


def _bands(picture: Paletted) -> Iterator[str]:
    """Six rows each: of every colour in them, the columns as characters of six bits."""
    width = picture.width
    for top in range(0, picture.height, 6):
        bits: dict[int, bytearray] = {}
        for row in range(top, min(top + 6, picture.height)):
            bit = 1 << (row - top)
            for x, colour in enumerate(picture.data[row * width : (row + 1) * width]):
                if colour not in bits:
                    bits[colour] = bytearray(b"?" * width)
                bits[colour][x] += bit
        lines = (f"#{colour}{_run_lengths(line)}" for colour, line in sorted(bits.items()))
        yield "$".join(lines)


def _run_lengths(line: bytearray) -> str:
    parts = []
    for value, run in groupby(line):
        count = len([*run])
        parts.append(f"!{count}{chr(value)}" if count > 3 else chr(value) * count)
    return "".join(parts)


def blocks(picture: Raster, *, true_colour: bool) -> str:
    """One character for each two pixels above each other, in 24-bit or xterm's 256 colours."""
    code = _true if true_colour else _indexed
    lines = []
    for y in range(0, picture.height, 2):
        line, last = [], ("", "")
        for x in range(picture.width):
            upper = code(38, picture[x, y])
            lower = code(48, picture[x, y + 1]) if y + 1 < picture.height else "49"
            changed = [
                now for now, before in zip((upper, lower), last, strict=True) if now != before
            ]
            line.append(f"\x1b[{';'.join(changed)}m{_UPPER}" if changed else _UPPER)
            last = (upper, lower)
        lines.append("".join(line) + "\x1b[0m\n")
    return "".join(lines)


def fit_blocks(width: int, height: int, columns: int, lines: int) -> tuple[int, int]:
    """The pixels that a picture is reduced to, so that its half-blocks fit; never enlarged."""
    scale = min(1.0, columns / width, 2 * lines / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def fit_cells(
    width: int, height: int, columns: int, lines: int, cell: tuple[int, int]
) -> tuple[int, int]:
    """Columns and rows for a picture: its own size, where small at least `_LEAST_ROWS` high, and no
    more than fits. `cell`: pixels of one cell."""
    across, down = cell
    rows: float = min(max(_LEAST_ROWS, ceil(height / down)), lines)
    wide = rows * down * width / height / across
    if wide > columns:
        wide, rows = columns, columns * across * height / width / down
    return max(1, round(wide)), max(1, round(rows))


def _true(kind: int, colour: Colour) -> str:
    return f"{kind};2;{colour[0]};{colour[1]};{colour[2]}"


def _indexed(kind: int, colour: Colour) -> str:
    return f"{kind};5;{nearest(colour)}"


def nearest(colour: Colour) -> int:
    """The number of the nearest of xterm's 256 colours, its first 16 left out: themes change
    those."""
    cube = [min(range(6), key=lambda level: abs(_LEVELS[level] - value)) for value in colour]
    grey = min(max(round((sum(colour) / 3 - 8) / 10), 0), 23)
    candidates = {
        16 + 36 * cube[0] + 6 * cube[1] + cube[2]: tuple(_LEVELS[level] for level in cube),
        232 + grey: (8 + 10 * grey,) * 3,
    }

    def off(number: int) -> int:
        return sum((a - b) ** 2 for a, b in zip(candidates[number], colour, strict=True))

    return min(candidates, key=off)
