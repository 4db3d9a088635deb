"""The vision transformer: one token order, masks, positions, pooling, packing."""

from typing import Any

import pytest
import timm
import torch

from attention_core import (
    DenseMask,
    Grid,
    Neighborhood,
    RelativeTable,
    Rotary,
    Sinusoidal,
    record_attention,
)
from vision import PRESETS, CenteredRotary, NeighborhoodTransformer, VisionTransformer

POSITIONS = ["learned", "sinusoidal", "rotary", None]
POOLING = ["class", "mean", "attention", "map"]
# Forms of the published models that depend on the size of the grid, besides those of POSITIONS
FORMS: dict[str, dict[str, Any]] = {
    "EVA-02": {"rotary": Rotary(axes=2, layout="interleaved", extent=4)},
    "DINOv3": {"positions": None, "rotary": CenteredRotary()},
    "MAE": {"positions": Sinusoidal(32, axes=2, layout="half", reverse=True)},
    "DINOv2": {"class_position": False},
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def vit(**changes: Any) -> VisionTransformer:
    settings: dict[str, Any] = {
        "dim": 32,
        "depth": 2,
        "heads": 2,
        "patch_size": 2,
        "num_classes": 5,
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


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", None])
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
    _same_alone_packed_and_padded(model)


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("form", FORMS)
def test_published_forms_are_the_same_alone_packed_and_padded(form: str, registers: int) -> None:
    model = vit(registers=registers, mask=[None, Neighborhood(1)], **FORMS[form])
    _same_alone_packed_and_padded(model)


def test_every_pooling_with_registers_is_the_same_alone_packed_and_padded() -> None:
    for pooling in POOLING:
        for class_token in (True, False) if pooling != "class" else (True,):
            options = {"class_token": class_token, "registers": 2, "pool_norm": True}
            _same_alone_packed_and_padded(vit(pooling=pooling, embedding_norm=True, **options))


def _same_alone_packed_and_padded(model: VisionTransformer) -> None:
    images = [torch.randn(1, *size) for size in ((8, 8), (2, 4), (6, 2), (8, 4), (12, 10))]
    embedded = [model.embed(image[None]) for image in images]
    tokens = [model.encoder(*one) for one in embedded]
    alone = torch.cat(
        [model.read(x, space) for x, (_, space) in zip(tokens, embedded, strict=True)]
    )
    torch.testing.assert_close(model(images), alone, atol=1e-5, rtol=1e-4)
    packed, space = model.embed(images)
    encoded = model.encoder(packed, space)
    torch.testing.assert_close(encoded, torch.cat(tokens, 1)[0], atol=1e-5, rtol=1e-4)
    rows = torch.nn.utils.rnn.pad_sequence([x[0] for x, _ in embedded], batch_first=True)
    sizes = [model.embedding.grid_size(image.shape[-2:]) for image in images]
    padded = Grid.padded(sizes, special=model.num_special)
    torch.testing.assert_close(
        model.read(model.encoder(rows, padded), padded), alone, atol=1e-5, rtol=1e-4
    )


def test_equal_images_in_a_list_equal_a_batch() -> None:
    model, image = vit(), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model(list(image)), model(image), atol=1e-5, rtol=1e-4)


def test_without_classes_the_pooled_image_comes_out() -> None:
    model = vit(num_classes=None, pooling="mean", positions="rotary")
    tokens, grid = model.embed(torch.randn(2, 1, 4, 4))
    torch.testing.assert_close(model.read(tokens, grid), tokens.mean(1))


def test_autocast_keeps_the_shape_and_is_close() -> None:
    model, image = vit(), torch.randn(2, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(image)
    assert rough.shape == (2, 5)
    torch.testing.assert_close(rough.float(), model(image), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "first"}, r"pooling must be one of 'class', .*, 'map'; got 'first'"),
        (
            {"pooling": "special", "class_token": False},
            "pooling='special' reads class_token and registers: there is none",
        ),
        ({"class_token": False}, r"pooling='class' reads the class token, but class_token=False"),
        ({"registers": -1}, r"registers must be at least 0, got -1"),
        ({"patch_dropout": 1.0}, r"patch_dropout must be in \[0, 1\), got 1.0"),
        ({"positions": "alibi"}, r"positions must be 'learned', .* got 'alibi'"),
        ({"image_size": None}, r"positions='learned' needs image_size"),
        ({"image_size": 9}, r"multiples of patch_size=2×2, got 9×9"),
        ({"image_size": [8]}, r"image_size must be .* got \[8\]"),
        ({"heads": 3}, r"dim=32 must be a multiple of heads=3"),
        ({"channels": 0}, r"channels must be at least 1, got 0"),
        ({"positions": "rotary", "rotary": Rotary(axes=2)}, r"positions='rotary' or rotary="),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vit(**changes)


def test_a_rotary_of_ones_own() -> None:
    own = Rotary(axes=2, base=50.0, layout="interleaved")
    model = vit(positions=None, rotary=own, image_size=None)
    assert model(torch.randn(1, 1, 12, 6)).shape == (1, 5)
    assert all(block.attention.rotary is own for block in model.encoder.blocks)


def test_the_class_token_alone_is_pooled_and_registers_are_not() -> None:
    model = vit(registers=2, num_classes=None)
    tokens, grid = model.embed(torch.randn(3, 1, 8, 8))
    assert grid.num_special == model.num_special == 3
    torch.testing.assert_close(model.read(tokens, grid), tokens[:, 0])
    torch.testing.assert_close(tokens[:, 1:3], model.registers.expand(3, -1, -1))
    packed, row = model.embed([torch.randn(1, 4, 4), torch.randn(1, 2, 6)])
    torch.testing.assert_close(model.read(packed, row), packed[[0, 7]])
    kept = torch.tensor([1, 0, 9])  # the class token stays one, wherever it goes
    torch.testing.assert_close(model.read(tokens[:, kept], grid.keep(kept)), tokens[:, 0])
    for pooling in ("mean", "attention", "map"):  # they read neither
        model = vit(registers=2, class_token=True, pooling=pooling, num_classes=None)
        tokens, grid = model.embed(torch.randn(3, 1, 8, 8))
        other = tokens.clone()
        other[:, :3] = 9.0
        torch.testing.assert_close(model.read(other, grid), model.read(tokens, grid))


def test_a_norm_after_pooling_stands_for_that_of_all_tokens() -> None:
    model = vit(pool_norm=True, pooling="mean", num_classes=None)
    assert isinstance(model.encoder.norm, torch.nn.Identity)
    tokens, grid = model.embed(torch.randn(2, 1, 8, 8))
    expected = torch.nn.functional.layer_norm(tokens.mean(1), (32,), eps=1e-6)
    torch.testing.assert_close(model.read(tokens, grid), expected)


@pytest.mark.parametrize("packed", [False, True])
def test_patches_drop_in_training_alone(packed: bool) -> None:
    image = torch.randn(4, 1, 8, 8)
    images: Any = [image[0], image[1, :, :4]] if packed else image
    model = vit(patch_dropout=0.5, registers=1)
    lengths: list[int] = []
    model.encoder.register_forward_pre_hook(lambda _, args: lengths.append(args[1].length))
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.allclose(model(images), model(images))
    model(images).sum().backward()
    assert model.positions.table.grad.abs().sum() > 0
    whole, part = (18 + 10, 10 + 6) if packed else (18, 10)
    assert lengths == [whole, whole, part, part, part]


def test_maps_of_layers_are_the_tokens_in_their_places() -> None:
    model = vit(depth=3, registers=2, norm_order="pre")
    images = [torch.randn(1, 8, 8), torch.randn(1, 4, 6)]
    tokens, grid = model.embed(images[0][None])
    expected = model.encoder(tokens, grid)[:, 3:].mT.reshape(1, 32, 4, 4)
    (last,) = model.features(images[0][None])
    torch.testing.assert_close(last, expected)
    first, raw = model.features(images[0][None], layers=[0, -1], norm=False)
    torch.testing.assert_close(model.encoder.norm(raw.movedim(1, -1)).movedim(-1, 1), last)
    shallow = vit(depth=1, registers=2)
    shallow.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(shallow.features(images[0][None], norm=False)[0], first)
    packed = model.features(images, layers=[2, 0])
    alone = [model.features(image[None], layers=[2, 0]) for image in images]
    for layer in range(2):
        for image in range(2):
            torch.testing.assert_close(
                packed[layer][image], alone[image][layer][0], atol=1e-5, rtol=1e-4
            )
    assert packed[0][1].shape == (32, 2, 3)
    model.patch_dropout = 0.5
    assert model.train().features(images[0][None])[0].shape == (1, 32, 4, 4)
    with pytest.raises(ValueError, match="there are 3 layers, no layer 3"):
        model.features(images[0][None], layers=[3])


@pytest.mark.parametrize(
    ("options", "reach"),
    [
        ({"radius": 1}, [(1, 1, 1), (1, 1, 1)]),
        ({"radius": [1, None]}, [(1, 1, 1), (9, 9, 1)]),
        ({"radius": (0, 2)}, [(0, 2, 1), (0, 2, 1)]),
        ({"radius": [[1, 0], 1], "dilation": [1, 2]}, [(1, 0, 1), (2, 2, 2)]),
        ({"radius": [None, 1], "dilation": 2}, [(9, 9, 2), (2, 2, 2)]),
    ],
)
def test_neighborhoods(options: dict[str, Any], reach: list[tuple[int, int, int]]) -> None:
    model = NeighborhoodTransformer(
        32, 2, 2, patch_size=2, num_classes=5, channels=1, image_size=8, registers=1, **options
    )
    with record_attention(model.eval()) as maps, torch.no_grad():
        model(torch.randn(1, 1, 8, 8))
    at = Grid(4, 4).coordinates
    away = (at[:, None] - at).abs()
    for weights, (rows, columns, step) in zip(maps, reach, strict=True):
        expected = (away <= torch.tensor([rows, columns])).all(-1) & (away % step == 0).all(-1)
        assert torch.equal(weights[0, 0, 2:, 2:] > 0, expected)
        assert bool((weights[..., :2] > 0).all() and (weights[:, :, :2] > 0).all())


def test_no_radius_is_all_patches() -> None:
    settings: dict[str, Any] = {"patch_size": 2, "num_classes": 5, "image_size": 8}
    assert NeighborhoodTransformer(32, 2, 2, radius=None, **settings).encoder.masks == [None, None]


def test_neighborhoods_that_do_not_fit_are_named() -> None:
    for options, message in (
        ({"radius": []}, "radius lists 0 entries for 2 layers"),
        ({"radius": 1, "dilation": [1, 2, 3]}, "dilation lists 3 entries for 2 layers"),
        ({"radius": 1, "mask": Neighborhood(1)}, "has its mask"),
        ({"radius": -1}, "radius must be at least 0"),
        ({"radius": 1, "dilation": 0}, "dilation must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            NeighborhoodTransformer(32, 2, 2, patch_size=2, num_classes=5, image_size=8, **options)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_numbers_of_parameters(name: str) -> None:
    """Of timm's models, the class token and 1,000 classes included."""
    theirs = {
        "tiny": "vit_tiny_patch16_224",
        "small": "vit_small_patch16_224",
        "base": "vit_base_patch16_224",
        "large": "vit_large_patch16_224",
        "huge": "vit_huge_patch14_224",
        "giant": "vit_giant_patch14_224",
        "gigantic": "vit_gigantic_patch14_224",
        "so400m": "vit_so400m_patch14_siglip_224",
    }[name]
    options: dict[str, Any] = {"patch_size": int(theirs.split("patch")[1][:2]), "num_classes": 1000}
    if name == "so400m":
        options["pooling"] = "map"
    with torch.device("meta"):
        peer = timm.create_model(theirs, num_classes=1000)
        ours = VisionTransformer.preset(name, image_size=224, **options)
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, peer)]
    assert counts[0] == counts[1]


def test_a_preset_takes_further_options() -> None:
    model = VisionTransformer.preset(
        "tiny", patch_size=16, num_classes=2, depth=1, positions="rotary"
    )
    assert len(model.encoder.blocks) == 1 and model.class_token.shape == (1, 192)
    local = NeighborhoodTransformer.preset(
        "tiny", patch_size=16, num_classes=2, depth=1, positions=None, radius=1
    )
    assert isinstance(local, NeighborhoodTransformer)
    with pytest.raises(ValueError, match="tiny, small, .* got 'medium'"):
        VisionTransformer.preset("medium", patch_size=16, num_classes=2)


@pytest.mark.parametrize("size", [(56, 56), (42, 84)])
def test_maps_are_timms(size: tuple[int, int]) -> None:
    theirs = timm.create_model(
        "vit_small_patch14_reg4_dinov2",
        embed_dim=32,
        depth=3,
        num_heads=2,
        img_size=56,
        dynamic_img_size=True,
    ).eval()
    ours = VisionTransformer.from_pretrained(theirs.state_dict(), heads=2).eval()
    image = torch.randn(2, 3, *size)
    for norm in (True, False):
        expected = theirs.forward_intermediates(
            image, indices=[0, 2], norm=norm, intermediates_only=True
        )
        found = ours.features(image, layers=[0, 2], norm=norm)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
