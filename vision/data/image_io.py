"""Image files, as Pillow reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
from PIL import Image, ImageOps

from attention_core.errors import too_large
from attention_core.training.inputs import check_file

#: The suffixes of images that are read.
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


#: How many pixels an image may have, by default. Above 178,956,970 Pillow's own limit comes first,
#: `PIL.Image.MAX_IMAGE_PIXELS`.
LARGEST = 50_000_000


def open_image(path: Path, largest: int = LARGEST) -> Image.Image:
    """Open the image of a file, decoded, upright as its camera was held, and `plain`.

    Args:
        largest: how many pixels it may have.

    Raises:
        ValueError: the file is no image that Pillow reads, is cut short, is larger, or has pixels
            of which nobody knows what is white.
    """
    check_file(path)
    with _as_value_error():
        file = Image.open(path)
    with file:
        if file.width * file.height > largest:
            raise too_large(largest, f"pixels, {file.width:,} × {file.height:,}")
        form = _form(file)
        with _as_value_error():
            image = ImageOps.exif_transpose(file)
            image.load()
    if form in ("12 bits", "white is zero"):  # as which Pillow gives what is in the file
        values = numpy.asarray(image).astype(numpy.uint16)
        wide = (values << 4) | (values >> 8)
        image = Image.fromarray(wide if form == "12 bits" else 65535 - values)
    image = plain(image)
    return image.convert("L") if form == "gray" else image


def plain(image: Image.Image) -> Image.Image:
    """Bring an image into gray of eight bits ("L"), of sixteen ("I;16"), or in colour ("RGB"), on
    white where it is transparent.

    Raises:
        ValueError: its pixels are numbers of which nobody knows what is white.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; whole numbers were expected")
    if image.mode.startswith("I"):
        return _sixteen_bits(image)
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        if image.mode in ("La", "RGBa"):  # premultiplied, from which there is no way but this
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # By way of RGB, as Pillow has no other from some modes to gray
    return image.convert("L" if gray else "RGB")


def in_channels(image: Image.Image, channels: int | None) -> Image.Image:
    """Bring an image into eight bits, as gray (1 channel) or red, green and blue (3); see `plain`.

    Args:
        channels: 1, 3, or None for what the image is.
    """
    image = plain(image)
    if image.mode == "I;16":  # which Pillow would cut off at 255
        image = Image.fromarray((numpy.asarray(image) // 257).astype(numpy.uint8))
    if channels is None:
        return image
    return image.convert("L" if channels == 1 else "RGB")


def _form(file: Image.Image) -> str:
    """Tell what the mode of an opened image does not say of its pixels; "" where it says all.

    Raises:
        ValueError: what white is, or what is transparent, cannot be told.
    """
    tiles = getattr(file, "tile", None)
    rawmode = str(tiles[0].args) if tiles else ""
    key = file.info.get("transparency")
    if file.format == "PNG" and key is not None:
        if rawmode == "RGB;16B":  # of which Pillow reads the upper byte alone
            raise ValueError("it has a transparent colour of 16 bits; one of 8 bits was expected")
        if rawmode in ("L;2", "L;4"):  # which become eight; the key does not
            file.info["transparency"] = key * (85 if rawmode == "L;2" else 17)
    if rawmode == "LA;16B":
        return "gray"
    tags = getattr(file, "tag_v2", {})  # of TIFF
    if 2 in tags.get(339, (1,)):
        raise ValueError("its pixels are signed numbers; unsigned ones were expected")
    if file.mode == "I" and file.format != "PPM":
        raise ValueError("its pixels are whole numbers of 32 bits; 8 or 16 bits were expected")
    if file.format == "TIFF":
        if file.mode == "I;16" and tags.get(258) == (12,):
            return "12 bits"
        if file.mode.startswith("I;16") and tags.get(262) == 0:
            return "white is zero"
    return ""


@contextmanager
def _as_value_error() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Pillow raises a dozen kinds for a damaged file
        raise ValueError(f"it is no image that can be read: {error}") from error


def _sixteen_bits(image: Image.Image) -> Image.Image:
    """Gray of sixteen bits, from "I" or from either order of bytes."""
    values = numpy.array(image)
    if values.size and not 0 <= values.min() <= values.max() <= 65535:
        raise ValueError(
            f"its pixels are whole numbers from {values.min()} to {values.max()}; gray of 8 or 16 "
            "bits was expected"
        )
    transparent = image.info.get("transparency")
    if transparent is not None:
        values[values == transparent] = 65535
    return Image.fromarray(values.astype(numpy.uint16))
