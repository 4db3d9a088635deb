"""Patches against a plain unfold and matrix product."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from attention_core import Grid
from vision import PatchEmbedding, drop_patches


def by_hand(embedding: PatchEmbedding, image: Tensor) -> Tensor:
    (h, w), channels = embedding.patch_size, image.shape[1]
    patches = image.unfold(2, h, h).unfold(3, w, w)  # (B, C, rows, columns, h, w)
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(len(image), -1, channels * h * w)
    return patches @ embedding.project.weight.flatten(1).T + embedding.project.bias


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize(
    ("patch_size", "size"), [(2, (8, 8)), ((2, 3), (4, 9)), ((4, 1), (8, 5)), (7, (7, 14))]
)
def test_a_token_is_its_patch_times_a_matrix(
    patch_size: int | tuple[int, int], size: tuple[int, int], channels: int
) -> None:
    embedding = PatchEmbedding(patch_size, 16, channels=channels).double()
    image = torch.randn(3, channels, *size, dtype=torch.float64)
    tokens, grid = embedding(image)
    h, w = embedding.patch_size
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
        ((2, 3, 8, 9), r"image .* multiples of patch_size=2×4, got 8×9"),
        ((2, 3, 7, 8), r"image .* multiples of patch_size=2×4, got 7×8"),
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


def test_what_is_no_tensor_is_refused() -> None:
    embedding = PatchEmbedding(2, 8, channels=1)
    for image in (torch.zeros(1, 1, 4, 4).numpy(), "image.png", None):
        with pytest.raises(
            TypeError, match=r"a tensor \(B, C, H, W\) or a list .* got (nd|str|None)"
        ):
            embedding(image)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"a tensor \(C, H, W\) in a list .* got ndarray"):
        embedding([torch.zeros(1, 4, 4).numpy()])  # type: ignore[list-item]


@pytest.mark.parametrize("patch", [0, (2,), (2, 2, 2), (2, -1), 2.0])
def test_a_patch_is_one_or_two_positive_numbers(patch: object) -> None:
    with pytest.raises(ValueError, match="patch_size must be"):
        PatchEmbedding(patch, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(("patch_size", "stride"), [(4, 2), ((4, 3), (2, 3)), (5, 3)])
def test_overlapping_patches_are_cut_at_the_stride(
    patch_size: int | tuple[int, int], stride: int | tuple[int, int]
) -> None:
    embedding = PatchEmbedding(patch_size, 8, channels=2, stride=stride).double()
    (h, w), (down, right) = embedding.patch_size, embedding.stride
    image = torch.randn(2, 2, h + 3 * down, w + 2 * right, dtype=torch.float64)
    columns = F.unfold(image, (h, w), stride=(down, right))
    expected = columns.mT @ embedding.project.weight.flatten(1).T + embedding.project.bias
    tokens, grid = embedding(image)
    assert grid.size == (4, 3)
    torch.testing.assert_close(tokens, expected)
    torch.testing.assert_close(embedding(list(image))[0], expected.flatten(0, 1))


def test_a_stem_of_convolutions() -> None:
    """As Xiao et al.: 3×3 with stride 2, normalisation and ReLU, then 1×1."""
    embedding = PatchEmbedding(8, 16, channels=3, stem=(4, 6, 8)).eval()
    convolutions = [m for m in embedding.stem if isinstance(m, nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convolutions] == [
        (4, 3, 3, 3), (6, 4, 3, 3), (8, 6, 3, 3),
    ]  # fmt: skip
    assert embedding.project.kernel_size == (1, 1)
    images = torch.randn(2, 3, 16, 24), torch.randn(1, 3, 8, 8)
    expected = images[0]
    for convolution in convolutions:
        expected = F.conv2d(expected, convolution.weight, stride=2, padding=1).relu()
        expected = expected / (1 + 1e-5) ** 0.5  # what an untrained batch normalisation does
    expected = embedding.project(expected).flatten(2).mT
    tokens, grid = embedding(images[0])
    assert grid.size == (2, 3)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-4)
    packed, _ = embedding([images[0][0], images[1][0], images[0][1]])
    small, _ = embedding(images[1])
    torch.testing.assert_close(
        packed, torch.cat([tokens[0], small[0], tokens[1]]), atol=1e-5, rtol=1e-4
    )
    assert PatchEmbedding(8, 16, stem=(4,)).project.kernel_size == (4, 4)


def test_a_list_needs_one_matrix_product() -> None:
    """A packed row does not pay for a convolution per image."""
    embedding, images = PatchEmbedding(2, 8), [torch.randn(3, 4, 2 * n) for n in range(1, 9)]
    calls: list[str] = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            calls.append(function.__name__)
            return function(*args, **(kwargs or {}))

    with Count():
        embedding(images)
    assert sum(name.startswith(("mm", "addmm")) for name in calls) == 1
    assert not any("conv" in name for name in calls)


def test_without_a_bias() -> None:
    embedding = PatchEmbedding(2, 8, channels=1, projection_bias=False)
    assert embedding.project.bias is None
    image = torch.randn(2, 1, 4, 6)
    torch.testing.assert_close(embedding(list(image))[0], embedding(image)[0].flatten(0, 1))
    assert embedding(torch.zeros(1, 1, 2, 2))[0].eq(0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"stride": 5},
            r"stride=\(5, 5\) leaves out pixels between patches of patch_size=\(4, 4\)",
        ),
        ({"stride": 0}, "stride must be a positive whole number"),
        (
            {"stem": (8, 8, 8)},
            r"a stem of 3 convolutions makes 8×8 pixels one, so patch_size=\(4, 4\)",
        ),
        ({"stem": (8,), "stride": 1}, r"and stride=\(1, 1\) must be multiples of 2"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchEmbedding(4, 8, **options)


def test_an_image_that_overlapping_patches_do_not_cover_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"of patch_size=4×4 and multiples of stride=2×2 more, got 7×8"
    ):
        PatchEmbedding(4, 8, stride=2)(torch.zeros(1, 3, 7, 8))


@pytest.mark.parametrize("special", [0, 3])
def test_dropped_patches_are_others_in_each_image(special: int) -> None:
    torch.manual_seed(0)
    grid, batch = Grid(5, 4, special=special), 6
    tokens = torch.arange(20.0 + special)[None, :, None].expand(batch, -1, 2) + 100
    kept, space = drop_patches(tokens, grid, 0.7)
    assert kept.shape == (batch, special + 6, 2) and space.batch == batch
    index = (kept[..., 0] - 100).long()
    assert index[:, :special].eq(torch.arange(special)).all()
    assert (index.diff(dim=-1) > 0).all()
    assert torch.equal(space.coordinates, grid.coordinates[index])
    assert len({tuple(row) for row in index.tolist()}) == batch
    assert len(index[:, special:].unique()) > 6
    if special:
        assert torch.equal(space.special, grid.special[index])


@pytest.mark.parametrize("special", [0, 2])
def test_each_packed_image_keeps_its_share(special: int) -> None:
    torch.manual_seed(0)
    sizes = [(5, 4), (1, 1), (2, 3), (1, 2)]
    grid = Grid.packed(sizes, special=special)
    tokens = torch.arange(float(grid.length))[:, None]
    seen = set()
    for _ in range(20):
        kept, space = drop_patches(tokens, grid, 0.5)
        index = kept[:, 0].long()
        assert (index.diff() > 0).all()
        assert space.segments.tolist() == grid.segments[index].tolist()
        assert torch.equal(space.coordinates, grid.coordinates[index])
        assert space.segments.bincount().tolist() == [special + n for n in (10, 1, 3, 1)]
        if special:
            assert space.special.sum() == special * 4
        assert torch.equal(space.extent, grid.extent[index])
        seen |= set(index.tolist())
    assert len(seen) == grid.length


@pytest.mark.parametrize(("share", "stay"), [(0.8, 2), (0.9, 1), (0.7, 3), (0.6, 4), (0.75, 2)])
def test_as_many_stay_as_the_share_says(share: float, stay: int) -> None:
    """Of ten patches: in floating point, 10 · (1 − 0.8) is less than 2."""
    assert drop_patches(torch.randn(1, 10, 4), Grid(2, 5), share)[0].shape[1] == stay
    packed = Grid.packed([(2, 5), (2, 5)])
    assert len(drop_patches(torch.randn(20, 4), packed, share)[0]) == 2 * stay


def test_dropping_nothing_changes_nothing_and_one_patch_stays() -> None:
    tokens, grid = torch.randn(2, 7, 4), Grid(2, 3, special=1)
    same, space = drop_patches(tokens, grid, 0.0)
    assert torch.equal(same, tokens) and space.coordinates[1].equal(grid.coordinates)
    assert drop_patches(tokens, grid, 0.99)[0].shape == (2, 2, 4)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\), got 1.0"):
        drop_patches(tokens, grid, 1.0)
    with pytest.raises(ValueError, match="of whole or packed grids, not of .* padding"):
        drop_patches(tokens, Grid.padded([(2, 3), (1, 1)], special=1), 0.5)
