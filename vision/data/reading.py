"""Image files, as Pillow reads them."""

from __future__ import annotations

from pathlib import Path

import numpy
from PIL import Image, ImageOps

#: The suffixes of images that are read.
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


def open_image(path: Path) -> Image.Image:
    """The image of a file, decoded, upright as its camera was held, and on white where it is
    transparent.

    Raises:
        ValueError: the file is no image that Pillow reads, or is cut short.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except Exception as error:  # Pillow raises a dozen kinds for a damaged file
        raise ValueError(f"it is no image that can be read: {error}") from error
    if image.has_transparency_data:
        gray = image.mode in ("LA", "La")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if gray else "RGB")
    return image


def in_channels(image: Image.Image, channels: int | None) -> Image.Image:
    """The image in eight bits, as gray (1 channel) or red, green and blue (3).

    Args:
        channels: 1, 3, or None for what the image is.

    Raises:
        ValueError: its pixels are floating-point numbers, of which nobody knows what is white.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; whole numbers were expected")
    if image.mode.startswith("I"):  # sixteen bits, which Pillow would cut off at 255
        image = Image.fromarray((numpy.asarray(image) // 257).clip(0, 255).astype(numpy.uint8))
    if channels is None:
        channels = 1 if image.mode in ("1", "L") else 3
    return image.convert("L" if channels == 1 else "RGB")
