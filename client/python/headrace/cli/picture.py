"""Shows a picture on the terminal, in the best way that it has."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from rich.console import Console

from headrace.cli import graphics
from headrace.cli.graphics import Paletted, Raster
from headrace.cli.screen import draws_unicode
from headrace.cli.terminal import USUAL_CELL, Way, cell_size

if TYPE_CHECKING:
    from PIL.Image import Image

_KEPT_LINES = 2
"""Of the terminal, for what is said below a picture."""
_MISSING = "the picture is not shown: that needs Pillow (pip install pillow)"


class CannotShow(Exception):
    """This terminal, or this installation, cannot show the picture; the message says why."""


def show(file: bytes, media_type: str, console: Console, way: Way) -> None:
    """Draws on a terminal; nothing with `Way.NONE`.

    Raises CannotShow.
    """
    if way is Way.NONE:
        return
    console.file.write(_drawn(file, media_type, console, way))
    console.file.flush()


def preview(file: bytes, console: Console, lines: int) -> str:
    """A picture as half-blocks, at most so many lines high.

    Raises CannotShow.
    """
    return _blocks(_decoded(file), console, lines)


def _drawn(file: bytes, media_type: str, console: Console, way: Way) -> str:
    lines = max(1, console.height - _KEPT_LINES)
    if way is Way.BLOCKS:
        return _blocks(_decoded(file), console, lines)
    if way is Way.KITTY and media_type == "image/png" and (size := _png_size(file)):
        return graphics.kitty(file, *_cells(size, console, lines))
    if way is Way.ITERM2 and media_type == "image/png" and (size := _png_size(file)):
        return graphics.iterm2(file, *_cells(size, console, lines))
    picture = _decoded(file)
    columns, rows = _cells(picture.size, console, lines)
    if way is Way.KITTY:
        return graphics.kitty(_as_png(picture), columns, rows)
    if way is Way.ITERM2:
        return graphics.iterm2(file, columns, rows)
    across, down = _cell(console)
    return graphics.sixel(_paletted(_resized(picture, columns * across, rows * down)))


def _blocks(picture: Image, console: Console, lines: int) -> str:
    if console.color_system not in ("truecolor", "256") or console.no_color:
        raise CannotShow("the picture is not shown: the terminal has too few colours")
    if not draws_unicode(console):
        raise CannotShow("the picture is not shown: the terminal has no block characters")
    size = graphics.fit_blocks(*picture.size, console.width, lines)
    small = _resized(picture, *size)
    raster = Raster(*small.size, small.tobytes())
    return graphics.blocks(raster, true_colour=console.color_system == "truecolor")


def _cells(size: tuple[int, int], console: Console, lines: int) -> tuple[int, int]:
    return graphics.fit_cells(*size, console.width, lines, _cell(console))


def _cell(console: Console) -> tuple[int, int]:
    with suppress(OSError):  # no file of the system's
        return cell_size(console.file.fileno())
    return USUAL_CELL


def _png_size(file: bytes) -> tuple[int, int] | None:
    """Width and height by the head of a PNG: so much needs no Pillow."""
    if file[:8] != b"\x89PNG\r\n\x1a\n" or file[12:16] != b"IHDR":
        return None
    return int.from_bytes(file[16:20]), int.from_bytes(file[20:24])


def _decoded(file: bytes) -> Image:
    """RGB; what is transparent is white."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise CannotShow(_MISSING) from None
    from io import BytesIO

    try:
        with Image.open(BytesIO(file)) as opened:
            picture = opened.convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise CannotShow(f"the picture is not shown: {error}") from None
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _resized(picture: Image, width: int, height: int) -> Image:
    from PIL.Image import Resampling

    # A picture of few pixels stays what it is: squares.
    enlarged = width >= picture.width
    return picture.resize((width, height), Resampling.NEAREST if enlarged else Resampling.LANCZOS)


def _as_png(picture: Image) -> bytes:
    from io import BytesIO

    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _paletted(picture: Image) -> Paletted:
    few = picture.quantize(256)
    flat = few.getpalette() or []
    colours = tuple((flat[at], flat[at + 1], flat[at + 2]) for at in range(0, len(flat) - 2, 3))
    return Paletted(few.width, few.height, few.tobytes(), colours)
