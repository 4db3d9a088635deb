"""The vision transformer: one token order, masks, positions, pooling, packing."""

from typing import Any

import pytest
import torch

from attention_core import DenseMask, Neighborhood, RelativeTable, Rotary, record_attention
from vision import VisionTransformer

POSITIONS = ["learned", "sinusoidal", "rotary", None]
POOLING = ["class", "mean", "attention"]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def vit(**changes: Any) -> VisionTransformer:
    settings: dict[str, Any] = {
        "dim": 32,
        "depth": 2,
        "heads": 2,
        "patch": 2,
        "classes": 5,
        "channels": 1,
        "image_size": 8,
    }
    return VisionTransformer(**{**settings, **changes}).eval()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("pooling", POOLING)
def test_logits_and_gradients_reach_everything(positions: Any, pooling: Any) -> None:
    model = vit(
        positions=positions,
        pooling=pooling,
        mask=[None, Neighborhood(1)],
        bias=RelativeTable.swin(2, 4, special=pooling == "class"),
    )
    logits = model(torch.randn(3, 1, 8, 8))
    assert logits.shape == (3, 5)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None and bool(parameter.grad.any()), name


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("size", [(4, 8), (8, 2), (6, 4)])
def test_rectangles_use_the_rows_of_their_places(positions: Any, size: tuple[int, int]) -> None:
    """A rectangle's tokens are those that the same pixels have in the corner of a larger image."""
    model = vit(positions=positions)
    image = torch.randn(2, 1, 8, 8)
    small, small_grid = model.embed(image[..., : size[0], : size[1]])
    large, large_grid = model.embed(image)
    at = [
        large_grid.coordinates[1:].tolist().index(place) + 1
        for place in small_grid.coordinates[1:].tolist()
    ]
    torch.testing.assert_close(small, large[:, [0, *at]])
    assert model(image[..., : size[0], : size[1]]).shape == (2, 5)


def test_without_positions_patches_have_no_order_and_with_them_they_do() -> None:
    image = torch.randn(2, 1, 8, 8)
    for positions in POSITIONS:
        model = vit(positions=positions)
        same = torch.allclose(model(image), model(image.flip(2).flip(3)), atol=1e-4)
        swapped = torch.cat([image[..., 4:, :], image[..., :4, :]], dim=2)
        same = torch.allclose(model(image), model(swapped), atol=1e-5)
        assert same == (positions is None), positions


@pytest.mark.parametrize("mask", [Neighborhood(0), Neighborhood(1), ~Neighborhood(9)])
def test_the_class_token_attends_everywhere_and_is_attended_by_all(mask: Any) -> None:
    model = vit(mask=mask)
    with record_attention(model) as maps, torch.no_grad():
        model(torch.randn(2, 1, 8, 8))
    for weights in maps:
        assert weights.shape == (2, 2, 17, 17)
        assert bool((weights[:, :, 0, :] > 0).all() and (weights[:, :, :, 0] > 0).all())
    _, grid = model.embed(torch.zeros(1, 1, 8, 8))
    expected = (grid.coordinates[1:, None] - grid.coordinates[None, 1:]).abs().amax(-1)
    allowed = weights[0, 0, 1:, 1:] > 0
    radius = mask.radius if isinstance(mask, Neighborhood) else -1
    assert allowed.tolist() == (expected <= radius).tolist()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("mask", [None, Neighborhood(1)])
def test_dropped_patches_are_as_masked_patches(positions: Any, mask: Any) -> None:
    model = vit(positions=positions, mask=mask, bias=RelativeTable.swin(2, 4))
    tokens, grid = model.embed(torch.randn(2, 1, 8, 8))
    kept = torch.tensor([0, 1, 3, 4, 8, 9, 14, 16])
    dropped = model.encoder(tokens[:, kept], grid.keep(kept))
    may = torch.zeros(17, dtype=torch.bool)
    may[kept] = True
    masked = model.encoder(tokens, grid, mask=DenseMask(may.expand(17, 17)))
    torch.testing.assert_close(dropped, masked[:, kept], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("pooling", POOLING)
def test_packed_images_equal_separate_images(positions: Any, pooling: Any) -> None:
    model = vit(positions=positions, pooling=pooling, mask=[None, Neighborhood(1)])
    images = [torch.randn(1, *size) for size in ((8, 8), (2, 4), (6, 2), (8, 4))]
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, atol=1e-5, rtol=1e-4)


def test_equal_images_in_a_list_equal_a_batch() -> None:
    model, image = vit(), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model(list(image)), model(image), atol=1e-5, rtol=1e-4)


def test_without_classes_the_pooled_image_comes_out() -> None:
    model = vit(classes=None, pooling="mean", positions="rotary")
    tokens, grid = model.embed(torch.randn(2, 1, 4, 4))
    torch.testing.assert_close(model.classify(tokens, grid), tokens.mean(1))


def test_autocast_keeps_the_shape_and_is_close() -> None:
    model, image = vit(), torch.randn(2, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(image)
    assert rough.shape == (2, 5)
    torch.testing.assert_close(rough.float(), model(image), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "max"}, r"pooling must be 'class', 'mean' or 'attention', got 'max'"),
        ({"positions": "alibi"}, r"positions must be 'learned', .* got 'alibi'"),
        ({"image_size": None}, r"positions='learned' needs image_size"),
        ({"image_size": 9}, r"multiples of patch=2×2, got 9×9"),
        ({"image_size": [8]}, r"image_size must be .* got \[8\]"),
        ({"heads": 3}, r"dim=32 must be a multiple of heads=3"),
        ({"channels": 0}, r"channels must be at least 1, got 0"),
        ({"positions": "rotary", "rotary": Rotary(axes=2)}, r"positions='rotary' or rotary="),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vit(**changes)


def test_an_image_larger_than_the_learned_table_is_named() -> None:
    with pytest.raises(ValueError, match=r"places up to \(4, 4\)"):
        vit()(torch.zeros(1, 1, 10, 8))


def test_a_rotary_of_ones_own() -> None:
    own = Rotary(axes=2, base=50.0, layout="interleaved")
    model = vit(positions=None, rotary=own, image_size=None)
    assert model(torch.randn(1, 1, 12, 6)).shape == (1, 5)
    assert all(block.attention.rotary is own for block in model.encoder.blocks)
