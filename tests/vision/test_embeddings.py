"""Patches against a plain unfold and matrix product."""

import pytest
import torch
from torch import Tensor

from attention_core import Grid
from vision import PatchEmbedding


def by_hand(embedding: PatchEmbedding, image: Tensor) -> Tensor:
    (h, w), channels = embedding.patch, image.shape[1]
    patches = image.unfold(2, h, h).unfold(3, w, w)  # (B, C, rows, columns, h, w)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(len(image), -1, channels * h * w)
    return patches @ embedding.project.weight.flatten(1).T + embedding.project.bias


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(
    ("patch", "size"), [(2, (8, 8)), ((2, 3), (4, 9)), ((4, 1), (8, 5)), (7, (7, 14))]
)
def test_a_token_is_its_patch_times_a_matrix(
    patch: int | tuple[int, int], size: tuple[int, int], channels: int
) -> None:
    embedding = PatchEmbedding(patch, 16, channels=channels).double()
    image = torch.randn(3, channels, *size, dtype=torch.float64)
    tokens, grid = embedding(image)
    h, w = embedding.patch
    assert grid.size == (size[0] // h, size[1] // w)
    torch.testing.assert_close(tokens, by_hand(embedding, image))


def test_tokens_and_coordinates_are_in_one_order() -> None:
    """A pixel lit at a place changes the token whose coordinates say that place, and no other."""
    embedding = PatchEmbedding((2, 3), 8, channels=1)
    dark, grid = embedding(torch.zeros(1, 1, 6, 12))
    for token, (row, column) in enumerate(grid.coordinates.tolist()):
        image = torch.zeros(1, 1, 6, 12)
        image[..., 2 * row + 1, 3 * column + 2] = 1
        changed = (embedding(image)[0] != dark).any(-1)[0]
        assert changed.nonzero().flatten().tolist() == [token]


def test_special_tokens_have_places_in_front() -> None:
    tokens, grid = PatchEmbedding(2, 8, channels=1)(torch.zeros(2, 1, 4, 6), special=2)
    assert tokens.shape == (2, 6, 8)
    assert grid.length == 8 and grid.special.tolist() == [True] * 2 + [False] * 6


def test_a_list_is_packed_in_one_row() -> None:
    embedding = PatchEmbedding(2, 8, channels=3)
    images = [torch.randn(3, 4, 6), torch.randn(3, 2, 2), torch.randn(3, 8, 4)]
    tokens, grid = embedding(images)
    torch.testing.assert_close(tokens, torch.cat([embedding(i[None])[0][0] for i in images]))
    alone = [Grid(2, 3), Grid(1, 1), Grid(4, 2)]
    assert grid.coordinates.tolist() == torch.cat([g.coordinates for g in alone]).tolist()
    assert grid.segments.tolist() == [0] * 6 + [1] + [2] * 8


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 8, 9), r"image .* multiples of patch=2×4, got 8×9"),
        ((2, 3, 7, 8), r"image .* multiples of patch=2×4, got 7×8"),
        ((2, 1, 8, 8), r"image must be \(B, C, H, W\) with C = channels=3, got \(2, 1, 8, 8\)"),
        ((3, 8, 8), r"image must be \(B, C, H, W\) .* got \(3, 8, 8\)"),
        ((2, 3, 0, 8), r"image .* got 0×8"),
    ],
)
def test_an_image_that_does_not_fit_is_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchEmbedding((2, 4), 8, channels=3)(torch.zeros(shape))


def test_images_in_a_list_are_checked_one_by_one() -> None:
    embedding = PatchEmbedding(2, 8, channels=3)
    with pytest.raises(ValueError, match=r"\(C, H, W\) in a list .* got \(1, 4, 4\)"):
        embedding([torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)])
    with pytest.raises(ValueError, match=r"\(C, H, W\) in a list .* got \(2, 3, 4, 4\)"):
        embedding([torch.zeros(2, 3, 4, 4)])
    with pytest.raises(ValueError, match="empty list"):
        embedding([])


def test_bytes_are_refused() -> None:
    with pytest.raises(TypeError, match="bytes / 255, got torch.uint8"):
        PatchEmbedding(2, 8, channels=1)(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("patch", [0, (2,), (2, 2, 2), (2, -1), 2.0])
def test_a_patch_is_one_or_two_positive_numbers(patch: object) -> None:
    with pytest.raises(ValueError, match="patch must be"):
        PatchEmbedding(patch, 8)  # type: ignore[arg-type]
