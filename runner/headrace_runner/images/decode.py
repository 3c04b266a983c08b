"""A file from outside as pixels of the size that is wanted.

Nothing about such a file is believed: not its name, which is never asked for, nor that it is whole,
nor that it is as small unpacked as it is packed.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from headrace_runner.images.encode import on_white
from headrace_runner.models.pipeline import Pixels

MAX_PIXELS = 8192 * 8192
"""Of an image before it is brought to size: the largest that the contract lets be drawn."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")

# Pillow would warn at its own limit, which is above ours.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadImage(ValueError):
    """A file that is no image to draw from; the message says why, for people."""


def decode(data: bytes, width: int, height: int) -> Pixels:
    """The image in a PNG, JPEG or WebP file, [height, width, 3].

    It is turned as its EXIF says, what is transparent is white, and it is scaled to cover the size
    and cut to it at its centre. Of an animation it is the first frame. Raises BadImage, for more
    than `MAX_PIXELS` before anything is unpacked, and MemoryError.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(f"has {image.width} x {image.height} pixels")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            # Brought to size first: what is transparent takes several copies to lay on white.
            fitted = ImageOps.fit(_rgb_or_rgba(image), (width, height), Image.Resampling.LANCZOS)
    except (BadImage, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("has too many pixels") from error
    except UnidentifiedImageError as error:
        raise BadImage("is no PNG, JPEG or WebP file; send one of these") from error
    except Exception as error:
        raise BadImage("is damaged or cut off; send a whole file") from error
    return np.asarray(on_white(fitted), dtype=np.uint8)


def _rgb_or_rgba(image: Image.Image) -> Image.Image:
    """Of these alone Pillow mixes colours as they are: not by their places in a palette, and not
    with those of what cannot be seen."""
    if image.mode in _DEEP_MODES:
        image = _eight_bits(image)
    wanted = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow would clip 16 bits of grey to 8, and forget which of them is transparent."""
    deep = np.asarray(image)
    grey = (deep.astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
    hidden = image.info.get("transparency")
    if hidden is None:
        return Image.fromarray(grey)
    seen = np.where(deep == hidden, 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([grey, seen]))


def _too_large(what: str) -> BadImage:
    return BadImage(f"{what}, more than the {MAX_PIXELS} that are read; send it smaller")
