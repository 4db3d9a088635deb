"""What is read of every kind of pixels that a file may hold, or refused by its name.

The files are written here, byte by byte, so that what is expected is what the formats say.
"""

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
from PIL import Image

from vision.data import ImageFolder
from vision.data.digit_images import digit_from_image
from vision.data.image_io import in_channels, open_image, plain
from vision.data.transforms import ImageTransform

GRAY, COLOUR, PALETTE, GRAY_ALPHA = 0, 2, 3, 4


def png(
    bits: int,
    kind: int,
    width: int,
    row: bytes,
    *,
    transparent: Sequence[int] = (),
    palette: bytes = b"",
) -> bytes:
    """A PNG file of one row."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)
    key = struct.pack(f">{len(transparent)}{'B' if kind == PALETTE else 'H'}", *transparent)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (chunk(b"PLTE", palette) if palette else b"")
        + (chunk(b"tRNS", key) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
        + chunk(b"IEND", b"")
    )


def tiff(bits: int, width: int, row: bytes, *, black: int = 1, signed: bool = False) -> bytes:
    """A TIFF file of one row of gray; where `black` is 0, white is."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: black, 273: 0, 277: 1, 278: 1}
    tags |= {279: len(row), 339: 2 if signed else 1}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II" + struct.pack("<HIH", 42, 8, len(tags)) + entries + bytes(4) + row


def shorts(*values: int, order: str = ">") -> bytes:
    return struct.pack(f"{order}{len(values)}H", *values)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        # A transparent colour is white, and nothing else is; 16 bits are divided by 257
        ("1", png(1, GRAY, 4, b"\xa0", transparent=[0]), [255, 255, 255, 255]),
        ("1", png(1, GRAY, 4, b"\xa0"), [255, 0, 255, 0]),
        ("2", png(2, GRAY, 4, b"\x1b", transparent=[1]), [0, 255, 170, 255]),
        ("4", png(4, GRAY, 4, b"\x05\x5a", transparent=[5]), [0, 255, 255, 170]),
        ("8", png(8, GRAY, 4, b"\x05\x55\x00\xff", transparent=[0x55]), [5, 255, 0, 255]),
        (
            "16",
            png(16, GRAY, 4, shorts(0, 500, 30_000, 65_535), transparent=[500]),
            [0, 255, 116, 255],
        ),
        ("16 none", png(16, GRAY, 2, shorts(0, 30_000), transparent=[501]), [0, 116]),
        ("gray alpha", png(8, GRAY_ALPHA, 3, bytes([10, 255, 20, 0, 0, 51])), [10, 255, 204]),
        ("gray alpha 16", png(16, GRAY_ALPHA, 2, shorts(2570, 65_535, 9, 0)), [10, 255]),
        (
            "colour",
            png(8, COLOUR, 2, bytes(range(6)), transparent=[0, 1, 2]),
            [255] * 3 + [3, 4, 5],
        ),
        ("colour 16", png(16, COLOUR, 1, shorts(257, 514, 65_535)), [1, 2, 255]),
        (
            "palette",
            png(8, PALETTE, 2, b"\0\1", palette=bytes(range(6)), transparent=[0]),
            [255, 255, 255, 3, 4, 5],
        ),
        ("tiff", tiff(16, 2, shorts(2570, 65_535, order="<")), [10, 255]),
        ("tiff, white is 0", tiff(16, 2, shorts(2570, 65_535, order="<"), black=0), [245, 0]),
        ("tiff, white is 0", tiff(8, 2, b"\x01\xff", black=0), [254, 0]),
        ("tiff of 12 bits", tiff(12, 2, b"\x80\x8f\xff"), [128, 255]),
        ("pgm", b"P5 2 1 65535 " + shorts(2570, 65_535), [10, 255]),
        ("pgm", b"P5 2 1 4095 " + shorts(2056, 4095), [128, 255]),
    ],
)
def test_pixels_are_what_the_format_says(
    name: str, content: bytes, expected: list[int], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    image = in_channels(open_image(path), None)
    assert image.mode == ("RGB" if "colour" in name or name == "palette" else "L")
    assert list(image.tobytes()) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            png(16, COLOUR, 1, shorts(1, 2, 3), transparent=[1, 2, 3]),
            "transparent colour of 16 bits",
        ),
        (tiff(32, 1, struct.pack("<I", 5)), "whole numbers of 32 bits; 8 or 16 bits were expected"),
        (tiff(16, 1, b"\1\0", signed=True), "signed numbers; unsigned ones were expected"),
        (tiff(8, 1, b"\xff", signed=True), "signed numbers; unsigned ones were expected"),
    ],
)
def test_pixels_without_a_white_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_image(tmp_path / "odd")


MODES = "1 L LA La P PA CMYK YCbCr HSV RGBX RGBA RGBa I I;16 I;16B LAB"


@pytest.mark.parametrize("mode", MODES.split())
def test_every_mode_of_pillow_shows_the_same_gray(mode: str) -> None:
    """A gray of 204, as it is or as black of which a fifth is opaque on white."""
    if mode in ("LA", "La", "RGBA", "RGBa"):
        full = Image.new(
            "LA" if "L" in mode else "RGBA", (2, 1), (0, 51) if "L" in mode else (0, 0, 0, 51)
        )
        image = full.convert(mode)
    elif mode.startswith("I"):
        image = Image.new(mode, (2, 1), 204 * 257)
    elif mode == "1":
        image = Image.new("1", (2, 1), 1)
    else:
        image = Image.new("RGB", (2, 1), (204, 204, 204)).convert(mode)
    gray = 255 if mode == "1" else 204
    assert plain(image).mode in ("L", "I;16", "RGB")
    for channels in (1, 3):
        seen = numpy.asarray(in_channels(image, channels)).astype(int)
        assert (abs(seen - gray) <= 2).all(), seen


def test_images_that_are_too_large_are_refused_by_their_header(tmp_path: Path) -> None:
    huge = png(8, GRAY, 13_300, b"")
    (tmp_path / "huge.png").write_bytes(huge[:20] + struct.pack(">I", 13_300) + huge[24:])
    content = (tmp_path / "huge.png").read_bytes()
    header = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "huge.png").write_bytes(content[:29] + header + content[33:])
    more = "it has more than 50,000,000 pixels, 13,300 × 13,300; data.largest_input says"
    for read in (open_image, digit_from_image, ImageFolder("", size=8, batch_size=1).read):
        with pytest.raises(ValueError, match=more):
            read(tmp_path / "huge.png")
    Image.new("L", (40, 25)).save(tmp_path / "small.png")
    data = ImageFolder("", size=None, batch_size=1, largest_input=1000)
    assert data.read(tmp_path / "small.png")["image"].shape == (3, 25, 40)
    with pytest.raises(ValueError, match="more than 999 pixels, 40 × 25;"):
        open_image(tmp_path / "small.png", 999)


def test_an_image_that_would_be_resized_to_too_much_is_refused(tmp_path: Path) -> None:
    """The middle of 1,000 × 1 pixels, 224 × 224, would be cut from 224,000 × 224 pixels."""
    long = Image.new("L", (1000, 1), 255)
    with pytest.raises(ValueError, match="50,000,000 pixels: 1,000 × 1, resized to 224,000 × 224;"):
        ImageTransform(size=224)(long)
    assert ImageTransform(size=16)(long).shape == (3, 16, 16)
    with pytest.raises(ValueError, match="more than 15,871 pixels: 1,000 × 1, resized to 992 × 16"):
        ImageTransform(size=None, multiple=16, largest=15_871)(long)
    drawn = Image.new("L", (200, 20), 255)
    drawn.paste(0, (20, 8, 180, 12))
    drawn.save(tmp_path / "stroke.png")
    assert digit_from_image(tmp_path / "stroke.png").shape == (1, 8, 8)
    with pytest.raises(ValueError, match="25,599 pixels: a digit of 160 × 4 in a square;"):
        digit_from_image(tmp_path / "stroke.png", largest=25_599)


def test_a_named_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="it is no file, but a named pipe"):
        open_image(tmp_path / "pipe.png")


def test_numbers_beyond_sixteen_bits_are_no_gray(tmp_path: Path) -> None:
    for value in (-1, 65_536):
        with pytest.raises(ValueError, match=f"whole numbers from {value} to {value}; gray of 8"):
            in_channels(Image.new("I", (2, 2), value), 1)
    Image.new("F", (20, 20), 0.5).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="floating-point numbers"):
        digit_from_image(tmp_path / "float.tif")
