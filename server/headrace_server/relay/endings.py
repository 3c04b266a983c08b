"""Whether an image file that comes piece by piece is whole, by what its format says itself. Pure.

The contract does not mark a file's last piece, and a file that ends too early must not pass for one
that is done: in doubt it is not whole.
"""

from __future__ import annotations

import struct
from typing import Protocol

from headrace.v1.image_pb2 import (
    IMAGE_FORMAT_JPEG,
    IMAGE_FORMAT_PNG,
    IMAGE_FORMAT_UNSPECIFIED,
    IMAGE_FORMAT_WEBP,
)


class Ending(Protocol):
    """Looks for the end of a file."""

    whole: bool
    """Whether what was fed so far ends where the file does."""

    def feed(self, data: bytes) -> None:
        """The next piece."""


class PngEnding:
    """Walks the chunks to IEND. PNG (Third Edition), 5.3: length, type, data, CRC."""

    def __init__(self) -> None:
        self.whole = False
        self._skip = 8  # the signature
        self._head = b""
        self._last = False

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data) and not self.whole:
            if self._skip:
                passed = min(self._skip, len(data) - at)
                self._skip -= passed
                at += passed
                self.whole = self._last and not self._skip
                continue
            taken = data[at : at + 8 - len(self._head)]
            self._head += taken
            at += len(taken)
            if len(self._head) == 8:
                length, kind = struct.unpack(">I4s", self._head)
                self._skip, self._last, self._head = length + 4, kind == b"IEND", b""
        if at < len(data):
            self.whole = False  # Something follows the end: whatever it is, it is no PNG.


class WebpEnding:
    """Counts up to the size that the head gives. RFC 9649, 2.4: "RIFF", size, "WEBP"."""

    def __init__(self) -> None:
        self.whole = False
        self._head = b""
        self._length = 0

    def feed(self, data: bytes) -> None:
        self._head += data[: 12 - len(self._head)]
        self._length += len(data)
        if len(self._head) == 12:
            magic, size, kind = struct.unpack("<4sI4s", self._head)
            self.whole = (magic, kind) == (b"RIFF", b"WEBP") and self._length == size + 8


class JpegEnding:
    """Walks the segments to the first scan, behind which the marker EOI is the end. ITU-T T.81, B:
    within a scan 0xFF is followed by zero or a restart marker."""

    def __init__(self) -> None:
        self.whole = False
        self._skip = 2  # the marker SOI
        self._head = b""
        self._scans = False
        self._tail = b""

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data) and not self._scans:
            if self._skip:
                passed = min(self._skip, len(data) - at)
                self._skip -= passed
                at += passed
                continue
            taken = data[at : at + 4 - len(self._head)]
            self._head += taken
            at += len(taken)
            if len(self._head) == 4:
                _, marker, length = struct.unpack(">BBH", self._head)
                # A length counts its own two bytes.
                self._skip, self._scans, self._head = max(0, length - 2), marker == 0xDA, b""
        if self._scans:
            self._tail = (self._tail + data[at:])[-2:]
            self.whole = self._tail == b"\xff\xd9"


_KINDS: dict[int, type[Ending]] = {
    IMAGE_FORMAT_UNSPECIFIED: PngEnding,
    IMAGE_FORMAT_PNG: PngEnding,
    IMAGE_FORMAT_JPEG: JpegEnding,
    IMAGE_FORMAT_WEBP: WebpEnding,
}


def ending(image_format: int) -> Ending:
    """Of a file of this `ImageFormat`."""
    return _KINDS[image_format]()
