"""Image files: what is written can be read by others, and what others send is not believed."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from headrace_runner.images.decode import MAX_PIXELS, BadImage, decode
from headrace_runner.images.encode import PREVIEW_BYTES, Format, encode, preview
from headrace_runner.images.parameters import parameters
from headrace_runner.models.pipeline import Drawing, Pixels

RED, BLUE = (255, 0, 0), (0, 0, 255)
FORMATS: tuple[Format, ...] = ("png", "jpeg", "webp")
ROSE = Drawing(prompt="a red rose, 紅\nin two lines", seed=2**63 - 1, width=64, height=32, steps=20)


def noise(width: int, height: int, channels: int = 3) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, (height, width, channels), dtype=np.uint8)


def halves(mode: str = "RGB", size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def file_of(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def close_to(pixel: Any, colour: tuple[int, int, int]) -> bool:
    return max(abs(int(a) - b) for a, b in zip(pixel, colour, strict=True)) < 12


def chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png_claiming(width: int, height: int, body: bytes = b"") -> bytes:
    """A PNG that says it is so large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("channels", [3, 4])
def test_a_png_has_the_very_pixels_and_the_same_bytes_each_time(channels: int) -> None:
    pixels = noise(33, 21, channels)
    data = encode(pixels, "png", "x")
    assert data == encode(pixels.copy(), "png", "x")
    assert (np.asarray(opened(data)) == pixels).all()


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_says_what_it_was_made_with_unless_told_not_to(format: Format) -> None:
    text = parameters(ROSE, "emoji:64")
    image = opened(encode(noise(64, 32), format, text))
    assert (image.format, image.size) == (format.upper(), (64, 32))
    if format == "png":
        assert isinstance(image.info, dict)
        assert image.info["parameters"] == text
    else:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment[:8] == b"UNICODE\0"
        assert comment[8:].decode("utf-16-be") == text
    bare = opened(encode(noise(64, 32), format))
    assert "parameters" not in bare.info
    assert not bare.getexif()


@pytest.mark.parametrize("format", FORMATS)
def test_the_longest_prompt_of_the_contract_fits(format: Format) -> None:
    data = encode(noise(8, 8), format, "😀" * 16384 + "\nSteps: 1")
    image = opened(data)
    if format != "png":
        text = image.getexif().get_ifd(0x8769)[0x9286][8:].decode("utf-16-be")
        assert text.startswith("😀" * 10_000)
        assert text.endswith("😀…")


def test_what_is_transparent_is_white_in_a_jpeg() -> None:
    clear = np.zeros((16, 16, 4), dtype=np.uint8)
    assert close_to(np.asarray(opened(encode(clear, "jpeg")))[8, 8], (255, 255, 255))
    assert np.asarray(opened(encode(clear, "webp")))[8, 8, 3] == 0


def test_the_parameters_have_the_conventional_form() -> None:
    drawing = Drawing(
        prompt="a red rose",
        negative_prompt="thorns",
        seed=7,
        width=64,
        height=32,
        steps=20,
        guidance=float(np.float32(2.1)),
        strength=0.25,
        input_images=(noise(64, 32),),
        loras=(("ink", 0.5), ("wet, paint", 1.0)),
    )
    assert parameters(drawing, "emoji:64") == (
        "a red rose\nNegative prompt: thorns\n"
        'Steps: 20, CFG scale: 2.1, Seed: 7, Size: 64x32, Model: "emoji:64", '
        'Denoising strength: 0.75, Loras: "ink:0.5 wet, paint:1"'
    )
    assert parameters(ROSE, "m").splitlines()[-1] == (
        "Steps: 20, Seed: 9223372036854775807, Size: 64x32, Model: m"
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(64, 64), (700, 900)])
def test_a_preview_is_small_whatever_it_shows(format: Format, size: tuple[int, int]) -> None:
    data = preview(noise(*size), format)
    assert len(data) <= PREVIEW_BYTES
    image = opened(data)
    assert image.format == format.upper()
    assert abs(image.width / image.height - size[0] / size[1]) < 0.01
    if size == (64, 64):
        assert image.size == size


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_an_input_image_is_read_by_its_content(format: str) -> None:
    pixels = decode(file_of(halves(), format), 40, 20)
    assert pixels.shape == (20, 40, 3)
    assert pixels.dtype == np.uint8
    assert close_to(pixels[10, 5], RED)
    assert close_to(pixels[10, 35], BLUE)


def test_one_of_the_size_wanted_is_left_as_it_is() -> None:
    pixels = noise(24, 16)
    assert (decode(file_of(Image.fromarray(pixels)), 24, 16) == pixels).all()


@pytest.mark.parametrize(
    ("orientation", "left_top"), [(1, RED), (2, BLUE), (3, BLUE), (6, RED), (8, BLUE)]
)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_it_is_turned_as_its_exif_says(
    orientation: int, left_top: tuple[int, int, int], format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = orientation > 4
    size = (20, 40) if turned else (40, 20)
    pixels = decode(file_of(halves(), format, exif=exif), *size)
    assert close_to(pixels[3, 3], left_top)
    # Turned by a quarter, the two halves are above each other.
    other = pixels[-3, 3] if turned else pixels[3, -3]
    assert close_to(other, RED if left_top == BLUE else BLUE)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_alpha_is_composited_on_white(format: str) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((0, 0, 0, 128), (8, 0, 16, 16))
    pixels = decode(
        file_of(image, format, **({"lossless": True} if format == "WEBP" else {})), 16, 16
    )
    assert pixels[8, 2].tolist() == [255, 255, 255]
    assert abs(int(pixels[8, 14, 0]) - 127) <= 1


def test_a_colour_that_stands_for_nothing_is_white_too() -> None:
    palette = halves("P")
    transparent = file_of(palette, transparency=palette.getpixel((0, 0)))
    assert decode(transparent, 40, 20)[10, 5].tolist() == [255, 255, 255]


def test_a_grey_of_16_bits_that_stands_for_nothing_is_white_too() -> None:
    grey = Image.fromarray(np.full((8, 8), 0x1234, dtype=np.uint16))
    assert decode(file_of(grey, transparency=0x1234), 8, 8)[4, 4].tolist() == [255, 255, 255]
    assert decode(file_of(grey, transparency=0x1235), 8, 8)[4, 4].tolist() == [18, 18, 18]


_PEAK = """\
import sys
from pathlib import Path
from headrace_runner.images.decode import decode

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

data = Path(sys.argv[1]).read_bytes()
before = peak()
decode(data, 64, 64)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak that Linux keeps")
def test_reading_a_large_image_takes_little_more_than_its_pixels(tmp_path: Path) -> None:
    side = 4096
    large = tmp_path / "large.png"
    Image.new("RGBA", (side, side), (9, 9, 9, 9)).save(large, compress_level=1)
    command = [sys.executable, "-c", _PEAK, str(large)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    pixels = 4 * side * side
    assert pixels < int(done.stdout) < 2.5 * pixels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        grey = np.full((8, 8), 0x8000, dtype=np.uint16)
        assert decode(file_of(Image.fromarray(grey)), 8, 8)[0, 0].tolist() == [128, 128, 128]
        return
    data = file_of(halves(mode), "JPEG" if mode == "CMYK" else "PNG")
    assert decode(data, 40, 20).shape == (20, 40, 3)


def test_another_shape_is_covered_and_cut_at_the_centre() -> None:
    striped = Image.new("RGB", (90, 30), RED)
    striped.paste(BLUE, (30, 0, 60, 30))
    pixels = decode(file_of(striped), 60, 60)
    assert pixels.shape == (60, 60, 3)
    assert all(close_to(pixels[y, x], BLUE) for y in (5, 55) for x in (5, 30, 55))


@pytest.mark.parametrize(
    ("width", "height"), [(8193, 8193), (30_000, 30_000), (2**31 - 1, 2**31 - 1)]
)
def test_a_bomb_is_refused_before_it_is_unpacked(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it was unpacked")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    with pytest.raises(BadImage, match=str(MAX_PIXELS)):
        decode(png_claiming(width, height), 64, 64)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_what_is_cut_off_is_refused(format: str, share: float) -> None:
    data = file_of(Image.fromarray(noise(64, 64)), format)
    with pytest.raises(BadImage):
        decode(data[: int(len(data) * share)], 64, 64)


@pytest.mark.parametrize(
    "data",
    [b"\0", b"\x89PNG\r\n\x1a\n", b"<svg/>", file_of(halves(), "GIF"), file_of(halves(), "TIFF")],
)
def test_what_is_no_image_of_these_kinds_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        decode(data, 64, 64)


def test_what_is_damaged_is_refused() -> None:
    whole = bytearray(file_of(Image.fromarray(noise(64, 64))))
    whole[200:260] = bytes(60)
    with pytest.raises(BadImage, match="damaged"):
        decode(bytes(whole), 64, 64)


def test_pillow_says_the_same_of_foreign_formats() -> None:
    """What is refused is refused for its format: the file is whole."""
    gif = file_of(halves(), "GIF")
    assert opened(gif).format == "GIF"
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(gif), formats=("PNG",))
