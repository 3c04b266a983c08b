"""Where a file ends, however it is cut into pieces."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.v1.image_pb2 import (
    IMAGE_FORMAT_JPEG,
    IMAGE_FORMAT_PNG,
    IMAGE_FORMAT_UNSPECIFIED,
    IMAGE_FORMAT_WEBP,
)
from headrace_server.relay.endings import ending
from tests.unit.relay.painter import png

COMMENT = b"\xff\xfe\x00\x06\xff\xd9\xff\xd9"  # whose text looks like an end
JPEG = (
    b"\xff\xd8\xff\xe0\x00\x07JFIF\x00"
    + COMMENT
    + b"\xff\xda\x00\x03\x01"
    + b"\xff\x00\x12\xff\xd0\x34" * 40
    + b"\xff\xd9"
)
WEBP = b"RIFF" + struct.pack("<I", 4 + 200) + b"WEBP" + bytes(200)
FILES: dict[int, bytes] = {
    IMAGE_FORMAT_UNSPECIFIED: png(1),
    IMAGE_FORMAT_PNG: png(2),
    IMAGE_FORMAT_JPEG: JPEG,
    IMAGE_FORMAT_WEBP: WEBP,
}


@pytest.mark.parametrize("kind", FILES)
@given(cuts=st.lists(st.integers(0, 1200), max_size=8))
def test_a_file_is_whole_at_its_end_and_not_before(kind: int, cuts: list[int]) -> None:
    file, found = FILES[kind], ending(kind)
    edges = sorted({0, len(file), *(cut for cut in cuts if cut < len(file))})
    for begin, end in pairwise(edges):
        assert not found.whole
        found.feed(file[begin:end])
    assert found.whole


@pytest.mark.parametrize("kind", FILES)
def test_what_goes_on_behind_its_end_is_not_whole(kind: int) -> None:
    found = ending(kind)
    found.feed(FILES[kind] + b"more")
    assert not found.whole
