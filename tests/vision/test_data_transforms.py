"""From image files to tensors: against torchvision's own pipeline, and every kind of pixel."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from attention_core.training import UsageError
from vision.data import ImageTransform
from vision.data.image_io import in_channels, open_image


def noise(width: int, height: int) -> Image.Image:
    pixels = numpy.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("shape", [(60, 40), (40, 61), (33, 33), (200, 31)])
def test_evaluation_is_that_of_pretrained_models(shape: tuple[int, int]) -> None:
    """Resized to 32 / 0.875, cut to 32 and normalised, as torchvision and timm do it."""
    image = noise(*shape)
    theirs = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(round(32 / 0.875), v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(32),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    ours = ImageTransform(32, crop=0.875, normalize="imagenet")(image)
    torch.testing.assert_close(ours, theirs(image).as_subclass(torch.Tensor), atol=1e-6, rtol=0)


def test_a_rectangle_is_covered_and_cut_in_the_middle() -> None:
    image = noise(50, 30)
    cut = ImageTransform((30, 20))(image)
    pixels = v2.functional.pil_to_tensor(image).float() / 255
    torch.testing.assert_close(cut, pixels[:, :, 15:35])
    assert ImageTransform([16, 40])(image).shape == (3, 16, 40)


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((50, 30), {"multiple": 16}, (32, 48)),
        ((5, 90), {"multiple": 16}, (96, 16)),
        ((500, 300), {"multiple": 16, "longest": 100}, (64, 96)),
        ((101, 101), {"multiple": 16, "longest": 104}, (96, 96)),
        ((50, 30), {}, (30, 50)),
    ],
)
def test_without_a_size_each_image_keeps_its_own(
    shape: tuple[int, int], options: dict[str, int], expected: tuple[int, int]
) -> None:
    assert ImageTransform(None, **options)(noise(*shape)).shape[1:] == expected


def test_augmentation_is_for_training_alone() -> None:
    flip = {"none": None, "flip": v2.RandomHorizontalFlip(p=1.0)}
    prepare = ImageTransform(32, crop=0.5, augment=flip)
    image = noise(32, 32)
    pixels = v2.functional.pil_to_tensor(image).float() / 255
    # What has its size after augmentation is left as it is; evaluation sees the middle, larger
    torch.testing.assert_close(prepare(image, augmented=True), pixels.flip(-1))
    assert (prepare(image) - pixels).abs().max() > 0.1
    cropped = ImageTransform(
        16, crop=0.5, augment={"crop": v2.RandomResizedCrop(16, antialias=True)}
    )
    assert cropped(image, augmented=True).shape == (3, 16, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_published_policies_take_what_they_get(channels: int) -> None:
    policy = {"policy": v2.RandAugment(3, 15), "erase": v2.RandomErasing(p=1.0)}
    prepare = ImageTransform(16, channels=channels, augment=policy)
    torch.manual_seed(0)
    seen = [prepare(noise(16, 16), augmented=True) for _ in range(20)]
    assert all(image.shape == (channels, 16, 16) for image in seen)
    assert all(0 <= image.min() <= image.max() <= 1 for image in seen)


GRAY = numpy.array([[0, 51, 102], [153, 204, 255]], dtype=numpy.uint8)
COLOUR = numpy.stack([GRAY, GRAY // 2, 255 - GRAY], axis=-1)
OPAQUE = numpy.array([[255, 255, 255], [0, 255, 0]], dtype=numpy.uint8)


def test_every_kind_of_pixel_becomes_gray_or_coloured(tmp_path: Path) -> None:
    on_white = numpy.where(OPAQUE[..., None] > 0, COLOUR, 255)
    deep = Image.fromarray(GRAY.astype(numpy.uint16) * 257)
    gray = GRAY[..., None].repeat(3, -1)
    files: dict[str, tuple[Image.Image, numpy.ndarray]] = {
        "gray.png": (Image.fromarray(GRAY), gray),
        "colour.png": (Image.fromarray(COLOUR), COLOUR),
        "clear.png": (Image.fromarray(numpy.dstack([COLOUR, OPAQUE])), on_white),
        "palette.png": (Image.fromarray(GRAY).convert("P"), gray),
        "deep.png": (deep, gray),
        "line.png": (Image.fromarray(GRAY > 100), (255 * (GRAY > 100))[..., None].repeat(3, -1)),
    }
    for name, (image, expected) in files.items():
        image.save(tmp_path / name)
        read = open_image(tmp_path / name)
        assert numpy.array_equal(numpy.asarray(in_channels(read, 3)), expected), name
        luma = numpy.asarray(Image.fromarray(expected.astype(numpy.uint8)).convert("L"))
        assert numpy.abs(numpy.asarray(in_channels(read, 1)).astype(int) - luma).max() <= 1, name
        own = 1 if name in ("gray.png", "deep.png", "line.png") else 3
        assert len(in_channels(read, None).getbands()) == own, name
    gray_clear = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(OPAQUE)])
    gray_clear.save(tmp_path / "la.png")
    kept = in_channels(open_image(tmp_path / "la.png"), None)
    assert numpy.array_equal(numpy.asarray(kept), numpy.where(OPAQUE > 0, GRAY, 255))


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.fromarray(COLOUR).save(tmp_path / "turned.png", exif=exif)
    assert open_image(tmp_path / "turned.png").size == (2, 3)


def test_pixels_that_are_no_bytes() -> None:
    with pytest.raises(ValueError, match="floating-point numbers"):
        in_channels(Image.fromarray(GRAY.astype(numpy.float32)), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, r"data.size must be a positive whole number, or \(height, width\); got 0"),
        ({"size": 8, "crop": 1.5}, "data.crop must be more than 0 and at most 1, got 1.5"),
        ({"size": 8, "channels": 2}, "data.channels must be 1, 3 or null, got 2"),
        ({"size": None, "multiple": 0}, "data.multiple must be at least 1, got 0"),
        ({"size": None, "multiple": 16, "longest": 9}, "data.longest must be at least .*16, got 9"),
        ({"size": 8, "normalize": "imagnet"}, "'imagnet' is none. Did you mean imagenet?"),
        ({"size": 8, "normalize": [0.5, 0.0]}, "a positive standard deviation .* got .0.5, 0.0."),
        ({"size": 8, "normalize": [[0.5] * 2, 1]}, "data.channels=3; got"),
        ({"size": 8, "normalize": [0.5]}, "or a mean and a standard deviation, .* got .0.5."),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ImageTransform(**options)


def test_gray_images_are_normalised_by_the_mean_of_the_channels() -> None:
    image = Image.fromarray(GRAY)
    values = ImageTransform((2, 3), channels=1, normalize="imagenet")(image)
    expected = (torch.from_numpy(GRAY)[None] / 255 - 0.449) / 0.226
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)
