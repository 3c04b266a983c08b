"""Escape sequences of pictures, taken apart again as a terminal would."""

from __future__ import annotations

import re
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli import graphics
from headrace.cli.graphics import Paletted, Raster
from headrace.cli.terminal import Way, told_by, understood


@given(st.binary(min_size=1, max_size=20_000))
def test_kitty_gets_the_file_in_pieces(file: bytes) -> None:
    drawn = graphics.kitty(file, 20, 10)
    commands = re.findall("\x1b_G([^;]*);([^\x1b]*)\x1b\\\\", drawn)
    assert drawn == "".join(f"\x1b_G{keys};{data}\x1b\\" for keys, data in commands) + "\n"
    assert b64decode("".join(data for _, data in commands)) == file
    assert all(len(data) <= 4096 for _, data in commands)
    first, last = commands[0][0], commands[-1][0]
    assert first.startswith("a=T,f=100,q=2,c=20,r=10,")
    assert [keys.endswith("m=1") for keys, _ in commands[:-1]] == [True] * (len(commands) - 1)
    assert last.endswith("m=0")


def test_iterm2_gets_the_file_with_its_size() -> None:
    drawn = graphics.iterm2(b"file", 20, 10)
    found = re.fullmatch("\x1b]1337;File=([^:]*):([^\x07]*)\x07\n", drawn)
    assert found is not None
    keys = dict(pair.split("=") for pair in found[1].split(";"))
    assert keys == {
        "inline": "1",
        "size": "4",
        "width": "20",
        "height": "10",
        "preserveAspectRatio": "1",
    }
    assert b64decode(found[2]) == b"file"


def read_sixel(drawn: str) -> tuple[int, int, dict[tuple[int, int], int]]:
    """Width, height and the colour of each pixel."""
    found = re.fullmatch(
        '\x1bP0;1;0q"1;1;(\\d+);(\\d+)((?:#\\d+;2;[\\d;]*\\d)*)(.*)\x1b\\\\\n', drawn
    )
    assert found is not None
    pixels: dict[tuple[int, int], int] = {}
    x, band, colour = 0, 0, -1
    for token in re.findall(r"#\d+|!\d+.|[$-]|.", found[4]):
        if token[0] == "#":
            colour = int(token[1:])
        elif token == "$":
            x = 0
        elif token == "-":
            x, band = 0, band + 1
        else:
            count, bits = (int(token[1:-1]) if token[0] == "!" else 1), ord(token[-1]) - 63
            for column in range(x, x + count):
                for bit in range(6):
                    if bits >> bit & 1:
                        assert (column, 6 * band + bit) not in pixels
                        pixels[column, 6 * band + bit] = colour
            x += count
    return int(found[1]), int(found[2]), pixels


@given(st.integers(1, 12), st.integers(1, 14), st.data())
def test_sixel_has_every_pixel_once(width: int, height: int, data: st.DataObject) -> None:
    colours = ((0, 0, 0), (255, 0, 0), (128, 64, 32))
    cells = data.draw(st.lists(st.integers(0, 2), min_size=width * height, max_size=width * height))
    drawn = graphics.sixel(Paletted(width, height, bytes(cells), colours))
    assert "#1;2;100;0;0" in drawn
    found = read_sixel(drawn)
    assert found[:2] == (width, height)
    assert found[2] == {
        (at % width, at // width): colour for at, colour in enumerate(cells)
    }  # fmt: skip


def test_half_blocks_are_upper_and_lower_pixel() -> None:
    red, blue, white = (255, 0, 0), (0, 0, 255), (255, 255, 255)
    picture = Raster(2, 3, bytes((*red, *red, *blue, *white, *white, *blue)))
    assert graphics.blocks(picture, true_colour=True) == (
        "\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[48;2;255;255;255m▀\x1b[0m\n"
        "\x1b[38;2;255;255;255;49m▀\x1b[38;2;0;0;255m▀\x1b[0m\n"
    )
    assert graphics.blocks(picture, true_colour=False).startswith("\x1b[38;5;196;48;5;21m▀")


@pytest.mark.parametrize(
    ("colour", "number"),
    [
        *(((0, 0, 0), 16), ((255, 255, 255), 231), ((255, 0, 0), 196), ((95, 135, 175), 67)),
        *(((128, 128, 128), 244), ((8, 8, 8), 232), ((250, 250, 250), 231)),
    ],
)
def test_the_nearest_of_256_colours(colour: tuple[int, int, int], number: int) -> None:
    assert graphics.nearest(colour) == number


@pytest.mark.parametrize(
    ("size", "columns", "lines", "fitted"),
    [
        ((64, 64), 100, 40, (64, 64)),
        ((64, 64), 100, 22, (44, 44)),
        ((1024, 512), 80, 40, (80, 40)),
        ((1, 5000), 80, 24, (1, 48)),
    ],
)
def test_half_blocks_fit(
    size: tuple[int, int], columns: int, lines: int, fitted: tuple[int, int]
) -> None:
    assert graphics.fit_blocks(*size, columns, lines) == fitted


@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 300), st.integers(1, 100))
def test_cells_fit_and_keep_the_shape(width: int, height: int, columns: int, lines: int) -> None:
    wide, rows = graphics.fit_cells(width, height, columns, lines, (10, 20))
    assert 1 <= wide <= columns
    assert 1 <= rows <= lines
    # Each side is off by half a cell at most, or held at one.
    assert (
        wide == 1
        or rows == 1
        or abs(wide / (2 * rows) - width / height)
        <= (width / height * (0.5 / wide + 0.5 / rows) + 0.5 / rows)
    )


def test_a_small_picture_is_shown_enlarged() -> None:
    assert graphics.fit_cells(64, 64, 80, 22, (10, 20)) == (24, 12)
    assert graphics.fit_cells(1024, 1024, 80, 22, (10, 20)) == (44, 22)


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({"TERM": "xterm-kitty"}, Way.KITTY),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, Way.KITTY),
        ({"TERM_PROGRAM": "ghostty"}, Way.KITTY),
        ({"TERM_PROGRAM": "iTerm.app"}, Way.ITERM2),
        ({"TERM_PROGRAM": "WezTerm"}, Way.ITERM2),
        ({"LC_TERMINAL": "iTerm2"}, Way.ITERM2),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "vscode"}, None),
    ],
)
def test_terminals_that_make_themselves_known(environment: dict[str, str], way: Way | None) -> None:
    assert told_by(environment) is way


@pytest.mark.parametrize(
    ("answer", "way"),
    [
        (b"\x1b_Gi=31;OK\x1b\\\x1b[?62;c", Way.KITTY),
        (b"\x1b_Gi=31;ENOTSUPPORTED\x1b\\\x1b[?62;4c", Way.SIXEL),
        (b"\x1b[?62;4;22c", Way.SIXEL),
        (b"\x1b[?4c", Way.BLOCKS),
        (b"\x1b[?1;2c", Way.BLOCKS),
        (b"", Way.BLOCKS),
    ],
)
def test_answers_of_terminals(answer: bytes, way: Way) -> None:
    assert understood(answer) is way
