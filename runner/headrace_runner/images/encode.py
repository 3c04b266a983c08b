"""Pixels as a file. The same pixels give the same bytes."""

from __future__ import annotations

import io
from typing import Any, Literal, TypeAlias

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from headrace_runner.models.pipeline import Pixels

Format: TypeAlias = Literal["png", "jpeg", "webp"]

PREVIEW_BYTES = 64 << 10
"""A preview's file at most."""

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_COMMENT_BYTES = 60_000
"""Of text in EXIF. A JPEG has room for one segment of 64 KiB."""
_QUALITIES = (85, 70, 50, 30)
_SETTINGS: dict[Format, dict[str, Any]] = {
    # Stated, so that a library's new default changes no bytes.
    "png": {"compress_level": 6, "optimize": False},
    "jpeg": {"quality": 95, "subsampling": 0, "optimize": False, "progressive": False},
    "webp": {"quality": 90, "method": 4, "lossless": False},
}


def media_type(format: Format) -> str:
    """Such as "image/png"."""
    return f"image/{format}"


def encode(pixels: Pixels, format: Format, parameters: str | None = None) -> bytes:
    """The file for an image.

    `parameters` goes into the text chunk "parameters" of a PNG, and into the EXIF field UserComment
    of a JPEG or WebP, where a text of more than 60,000 bytes in UTF-16 is cut. A JPEG has no alpha:
    what is transparent is white in it.
    """
    extra: dict[str, Any] = {}
    if parameters is not None and format == "png":
        extra["pnginfo"] = PngInfo()
        extra["pnginfo"].add_text("parameters", parameters)
    elif parameters is not None:
        exif = Image.Exif()
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _user_comment(parameters)
        extra["exif"] = exif
    return _save(Image.fromarray(pixels), format, **_SETTINGS[format], **extra)


def preview(pixels: Pixels, format: Format) -> bytes:
    """A file of at most `PREVIEW_BYTES`: of a lower quality where it has to be, then smaller."""
    image = Image.fromarray(pixels)
    while True:
        for quality in _QUALITIES[:1] if format == "png" else _QUALITIES:
            settings = {} if format == "png" else {"quality": quality}
            data = _save(image, format, **settings)
            if len(data) <= PREVIEW_BYTES:
                return data
        image = image.resize((max(1, image.width // 2), max(1, image.height // 2)))


def on_white(image: Image.Image) -> Image.Image:
    """An RGB image: what is transparent is white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _save(image: Image.Image, format: Format, **settings: Any) -> bytes:
    if format == "jpeg":
        image = on_white(image)
    file = io.BytesIO()
    image.save(file, format.upper(), **settings)
    return file.getvalue()


def _user_comment(text: str) -> bytes:
    """EXIF 2.3, 4.6.5: eight bytes that name the code, then the text."""
    encoded = text.encode("utf-16-be")
    if len(encoded) > _COMMENT_BYTES:
        # Not in the middle of a surrogate pair.
        kept = encoded[: _COMMENT_BYTES - 2].decode("utf-16-be", "ignore")
        encoded = f"{kept}…".encode("utf-16-be")
    return b"UNICODE\0" + encoded
