"""Attention maps, rollout and distances against their definitions, written plainly."""

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from attention_core import AttentionPool, Neighborhood, record_attention
from attention_core.interpret.maps import attention_layers, record
from tests.allocated import Allocated
from vision import SwinTransformer, TokenMerging, VisionTransformer
from vision.embeddings import drop_patches
from vision.interpret import (
    attention_maps,
    attention_rollout,
    mean_attention_distance,
    patch_distances,
    pooling_attention,
)
from vision.interpret.maps import _on_grid, _size, has_class_token, stacks

ROWS, COLUMNS, HEADS, DEPTH = 4, 3, 2, 3
PATCH = (2, 5)
PLACES = list(product(range(ROWS), range(COLUMNS)))
MODELS: dict[str, dict[str, Any]] = {
    "class": {},
    "registers": {"registers": 2},
    "mean": {"pooling": "mean"},
    "mean beside special tokens": {"pooling": "mean", "class_token": True, "registers": 1},
    "attention": {"pooling": "attention"},
    "map": {"pooling": "map", "registers": 1},
    "neighborhood": {"mask": Neighborhood(1)},
}


def vit(kind: type[VisionTransformer] = VisionTransformer, **options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"positions": "sinusoidal", **options}
    return kind(16, DEPTH, HEADS, patch_size=PATCH, num_classes=3, channels=1, **settings).eval()


def images(count: int = 2, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 1, rows * PATCH[0], columns * PATCH[1])


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> VisionTransformer:
    return vit(**MODELS[request.param])


def plain_weights(model: VisionTransformer, image: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """Of each layer (B, H, L, L), and of the pooling layer (B, H, 1, N): softmax of q·k."""
    inputs: dict[Any, list[Tensor]] = {}
    modules = [block.attention for block in model.encoder.blocks]
    modules += [model.pool.attention] if isinstance(model.pool, AttentionPool) else []
    for module in modules:
        module.register_forward_hook(lambda m, args, out: inputs.__setitem__(m, list(args[:2])))
    with torch.no_grad():
        model(image)
    special = model.num_special

    def allowed(query: int, key: int) -> bool:
        if model.encoder.masks[0] is None or query < special or key < special:
            return True
        (a, b), (c, d) = PLACES[query - special], PLACES[key - special]
        return max(abs(a - c), abs(b - d)) <= 1

    weights = []
    for module in modules:
        x, context = inputs[module][0], inputs[module][-1]
        q = module.query(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k = module.key_value(context).chunk(2, -1)[0].unflatten(-1, (HEADS, -1)).transpose(1, 2)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if len(weights) < DEPTH:
            pairs = [[allowed(i, j) for j in range(k.shape[2])] for i in range(q.shape[2])]
            scores = scores.masked_fill(~torch.tensor(pairs), -torch.inf)
        weights.append(scores.softmax(-1).detach())
    return weights[:DEPTH], weights[DEPTH] if len(weights) > DEPTH else None


# --------------------------------------------------------------------------------------------- maps


def test_maps_are_the_weights_at_the_places_of_the_patches(model: VisionTransformer) -> None:
    image = images()
    weights, pool = plain_weights(model, image)
    special = model.num_special
    for layer in (0, DEPTH - 1, -1):
        for query in ("class", "mean", (1, 2), (-1, 0), None):
            if query == "class" and not has_class_token(model):
                continue
            (maps,) = attention_maps(model, image, layers=[layer], query=query)  # type: ignore[arg-type]
            assert maps.shape == (2, HEADS, ROWS, COLUMNS)
            for row, column in PLACES:
                to = weights[layer][..., special + row * COLUMNS + column]
                if query == "class" or (query is None and has_class_token(model)):
                    expected = to[:, :, 0]
                elif query in ("mean", None):
                    expected = to[:, :, special:].mean(-1)
                else:
                    expected = to[:, :, special + (5 if query == (1, 2) else 9)]
                torch.testing.assert_close(maps[..., row, column], expected)
            rest = 1 - maps.sum((2, 3))
            assert bool((rest > 0).all()) if special else bool((rest.abs() < 1e-5).all())
    pooled = pooling_attention(model, image)
    if pool is not None:
        torch.testing.assert_close(pooled.flatten(2), pool[:, :, 0])
    else:
        query: Any = model.pooling
        torch.testing.assert_close(pooled, attention_maps(model, image, query=query)[-1])


def test_the_weights_are_those_of_the_reference_also_with_rotary_positions() -> None:
    model, image = vit(positions="rotary", registers=1), images()
    with record_attention(model.encoder) as recorded, torch.no_grad():
        model.encoder(*model.embed(image), backend="reference")
    maps = attention_maps(model, image)
    assert len(maps) == DEPTH
    for layer in range(DEPTH):
        expected = recorded[layer][:, :, 0, 2:].unflatten(-1, (ROWS, COLUMNS))
        torch.testing.assert_close(maps[layer], expected)
    last, first = attention_maps(model, image, layers=[-1, 0], heads=[-1, 0])
    torch.testing.assert_close(last, maps[-1][:, [1, 0]])
    torch.testing.assert_close(first, maps[0][:, [1, 0]])


@pytest.mark.parametrize("name", ["ViT", "Dinov2WithRegisters", "DINOv3ViT"])
def test_maps_are_the_weights_that_transformers_returns(name: str) -> None:
    """Positions learned or rotary, registers or none, at a rectangle."""
    settings = {"num_register_tokens": 3} if name != "ViT" else {}
    config = getattr(transformers, f"{name}Config")(
        hidden_size=32,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=48,
        image_size=16,
        patch_size=4,
        attn_implementation="eager",
        **settings,
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{name}Model")(config).eval()
    ours = VisionTransformer.from_pretrained(theirs.state_dict(), config=config.to_dict()).eval()
    image = torch.randn(2, 3, 16, 16 if name == "ViT" else 24)
    with torch.no_grad():
        weights = theirs(image, output_attentions=True).attentions
    special = ours.num_special
    assert len(weights) == DEPTH and special == (1 if name == "ViT" else 4)
    for layer, expected in enumerate(weights):
        expected = expected[..., special:].unflatten(-1, (4, -1))
        (maps,) = attention_maps(ours, image, layers=[layer])
        torch.testing.assert_close(maps, expected[:, :, 0])
        (patch,) = attention_maps(ours, image, layers=[layer], query=(2, 1))
        place = special + 2 * expected.shape[-1] + 1
        torch.testing.assert_close(patch, expected[:, :, place])


@pytest.mark.parametrize(
    "function",
    [
        lambda model, image: attention_maps(model, image)[-1],
        pooling_attention,
        attention_rollout,
        lambda model, image: attention_maps(model, image, layers=[0], query=(1, 1))[0],
    ],
)
@pytest.mark.parametrize("name", ["registers", "map", "neighborhood"])
def test_a_list_of_images_gives_a_map_of_each(name: str, function: Callable[..., Any]) -> None:
    model = vit(**MODELS[name])
    sizes = [(4, 3), (2, 2), (3, 5)]
    packed = [images(1, *size)[0] for size in sizes]
    maps = function(model, packed)
    assert [one.shape[-2:] for one in maps] == sizes
    for one, image in zip(maps, packed, strict=True):
        torch.testing.assert_close(one, function(model, image[None])[0])


def test_a_map_of_a_list_is_a_block_of_the_packed_weights() -> None:
    model = vit(registers=1)
    packed = [images(1, 2, 2)[0], images(1, 3, 5)[0]]
    with record_attention(model.encoder, layers=[1]) as recorded, torch.no_grad():
        model(packed)
    ((_, second),) = attention_maps(model, packed, layers=[1], query=(0, 1))
    start = 2 + 4 + 2  # special tokens and patches of the first image, special tokens of the second
    expected = recorded[0][0, :, start + 1, start:].unflatten(-1, (3, 5))
    torch.testing.assert_close(second, expected)


# ------------------------------------------------------------------------------------------ rollout


def test_rollout_is_the_papers_formula(model: VisionTransformer) -> None:
    image = images()
    weights, pool = plain_weights(model, image)
    length, special = weights[0].shape[-1], model.num_special
    rollout = torch.eye(length)
    for layer in weights:  # A = 0.5 W + 0.5 I, from the first layer on
        rollout = (0.5 * layer.mean(1) + 0.5 * torch.eye(length)) @ rollout
    if pool is not None:
        expected = (pool.mean(1) @ rollout[:, special:])[:, 0, special:]
    elif model.pooling == "class":
        expected = rollout[:, 0, special:]
    else:
        expected = rollout[:, special:, special:].mean(1)
    found = attention_rollout(model, image)
    assert found.shape == (2, ROWS, COLUMNS)
    torch.testing.assert_close(found.flatten(1), expected)


@pytest.mark.parametrize("fuse", ["max", "min"])
def test_rollout_with_other_heads_and_less_noise(fuse: str) -> None:
    model, image = vit(registers=1), images()
    weights, _ = plain_weights(model, image)
    length = weights[0].shape[-1]
    for sample in range(2):
        row = [1.0] + [0.0] * (length - 1)
        for layer in reversed(weights):
            mixing = []
            for query in range(length):
                of_heads = layer[sample, :, query]
                fused = [getattr(of_heads[:, key], fuse)().item() for key in range(length)]
                dropped = sorted(fused)[: int(0.4 * length)]
                kept = [0.0 if value in dropped else value for value in fused]
                mixing.append([0.7 * value / sum(kept) for value in kept])
                mixing[query][query] += 0.3
            row = [sum(row[i] * mixing[i][j] for i in range(length)) for j in range(length)]
        found = attention_rollout(model, image, residual=0.3, head_fusion=fuse, discard=0.4)  # type: ignore[arg-type]
        torch.testing.assert_close(found[sample].flatten(), torch.tensor(row[2:]))


def test_what_stays_where_it_is_rolls_nowhere() -> None:
    model = vit(pooling="mean")
    everywhere = torch.full((2, ROWS, COLUMNS), 1 / (ROWS * COLUMNS))
    torch.testing.assert_close(attention_rollout(model, images(), residual=1.0), everywhere)


# ---------------------------------------------------------------------------------------- distances


def apart(first: tuple[int, int], second: tuple[int, int], scale: int = 1) -> float:
    (a, b), (c, d) = first, second
    return math.hypot((a - c) * PATCH[0] * scale, (b - d) * PATCH[1] * scale)


def spread_evenly(model: torch.nn.Module) -> None:
    """Queries of zeros and no relative positions: all keys that a query sees get as much."""
    for name, parameter in model.named_parameters():
        if ".query." in name or "table" in name:
            torch.nn.init.zeros_(parameter)


def test_distance_is_the_mean_weighted_by_attention(model: VisionTransformer) -> None:
    image = images()
    weights, _ = plain_weights(model, image)
    found = mean_attention_distance(model, image)
    assert found.shape == (DEPTH, HEADS)
    special = model.num_special
    for layer, head in product(range(DEPTH), range(HEADS)):
        of_samples = []
        for sample in range(2):
            given = weights[layer][sample, head, special:, special:]
            total = sum(
                float(given[i, j]) * apart(PLACES[i], PLACES[j])
                for i, j in product(range(len(PLACES)), repeat=2)
            )
            of_samples.append(total / float(given.sum()))
        assert float(found[layer, head]) == pytest.approx(sum(of_samples) / 2, rel=1e-5)


def test_even_attention_looks_as_far_as_patches_are_apart() -> None:
    model = vit(registers=1)
    spread_evenly(model)
    mean = sum(apart(*pair) for pair in product(PLACES, repeat=2)) / len(PLACES) ** 2
    found = mean_attention_distance(model, images())
    torch.testing.assert_close(found, torch.full((DEPTH, HEADS), mean))
    assert float(patch_distances(model, (8, 15)).mean()) == pytest.approx(mean)


def test_distance_knows_overlapping_patches_and_lists() -> None:
    model = vit(pooling="mean", mask=Neighborhood((1, 0)), embedding={"stride": (1, 5)})
    spread_evenly(model)
    one, other = images(1)[0], images(1, 2, 1)[0]
    # A patch in the first or last of n rows gives half to that 1 pixel beside it, others 2/3
    rows = [8 - 1, 4 - 1]
    expected = sum((2 * 1 / 2 + (n - 2) * 2 / 3) / n for n in rows) / 2
    found = mean_attention_distance(model, [one, other])
    torch.testing.assert_close(found, torch.full((DEPTH, HEADS), expected))


# --------------------------------------------------------------------------------------------- Swin


def swin(**options: Any) -> SwinTransformer:
    torch.manual_seed(0)
    return SwinTransformer(
        8, (2, 1), (2, 4), window=2, patch_size=PATCH, num_classes=3, channels=1, **options
    ).eval()


def test_maps_of_windows_end_where_the_image_does() -> None:
    model, image = swin(), images()
    spread_evenly(model)
    (maps,) = attention_maps(
        model, image, layers=[0], query=(1, 2)
    )  # windows of 2×2 complete the third column
    expected = torch.zeros(ROWS, COLUMNS)
    expected[0:2, 2] = 0.25
    torch.testing.assert_close(maps, expected.expand(2, 2, -1, -1))
    (shifted,) = attention_maps(model, image, layers=[1], query=(1, 1))
    expected = torch.zeros(ROWS, COLUMNS)
    expected[1:3, 1:3] = 0.25
    torch.testing.assert_close(shifted, expected.expand(2, 2, -1, -1))
    # The second stage is 2×2 tokens: one window, evenly attended to
    assert attention_maps(model, image)[-1].shape == (2, 4, 2, 2)
    torch.testing.assert_close(pooling_attention(model, image), torch.full((2, 4, 2, 2), 0.25))


@pytest.mark.parametrize("special", [0, 2])
def test_distances_of_a_local_model_are_those_of_its_whole_table(special: int) -> None:
    """From pairs alone, in images of any size, special tokens and the ends of windows aside."""
    local = vit(pooling="mean", registers=special, mask=[Neighborhood(1), None])
    for model in (local, swin(), swin(version=2)):
        image = images(1, rows=5, columns=3)
        layers = record(model, partial(model, image), attention_layers(*stacks(model)))
        found = mean_attention_distance(model, image)
        for layer, weights in enumerate(layers):
            rows, columns = _size(weights)
            scale = 1 if isinstance(model, VisionTransformer) or layer < 2 else 2
            places = list(product(range(rows), range(columns)))
            table = torch.tensor([[apart(a, b, scale) for b in places] for a in places])
            given = _on_grid(weights, weights.table[:, weights.queries.num_special :]).flatten(2)
            expected = (given * table).sum((1, 2)) / given.sum((1, 2))
            torch.testing.assert_close(found[layer, : len(expected)], expected)


def test_distances_of_windows_do_not_need_a_table_of_all_pairs() -> None:
    model = SwinTransformer(
        8, (2,), (4,), window=2, patch_size=1, num_classes=None, channels=1
    ).eval()
    with Allocated() as made:
        mean_attention_distance(model, torch.rand(1, 1, 64, 64))
    table = 4 * 64**4  # numbers, of four heads
    assert made.largest < 2 * table  # bytes: half of it


def test_distances_of_windows_are_in_pixels_of_the_image() -> None:
    model = swin()
    spread_evenly(model)
    found = mean_attention_distance(model, images())
    assert found.shape == (3, 4)
    pairs = [
        (a, b)
        for a, b in product(PLACES, repeat=2)
        if (a[0] // 2, a[1] // 2) == (b[0] // 2, b[1] // 2)
    ]
    expected = sum(apart(*pair) for pair in pairs) / len(pairs)
    torch.testing.assert_close(found[0, :2], torch.full((2,), expected))
    corners = list(product(range(2), repeat=2))
    expected = sum(apart(a, b, scale=2) for a, b in product(corners, repeat=2)) / 16
    torch.testing.assert_close(found[2], torch.full((4,), expected))
    assert bool(found[:2, 2:].isnan().all())  # heads that the first stage does not have


# ------------------------------------------------------------------------------------------- errors


class Dropping(VisionTransformer):
    def forward(self, image: Any) -> Tensor:
        tokens, space = drop_patches(*self.embed(image), 0.5)
        return self.read(self.encoder(tokens, space), space)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention_maps(vit(), images(), layers=[3]), "there are 3 layers, no layer 3"),
        (lambda: attention_maps(vit(), images(), heads=[2]), "there are 2 heads, no head 2"),
        (lambda: attention_maps(vit(), images(), layers=[]), "layers must name at least one layer"),
        (
            lambda: attention_maps(vit(num_groups=1), images(), layers=[0]),
            "layer 0 shares its block .* give some of 2",
        ),
        (
            lambda: attention_maps(vit(pooling="mean"), images(), query="class"),
            "needs a model with a class token",
        ),
        (
            lambda: attention_maps(vit(), images(), query=(4, 0)),
            r"query=\(4, 0\) is no patch .* 4×3",
        ),
        (lambda: attention_maps(vit(), images(), query="all"), "must be 'class', 'mean' or"),  # type: ignore[arg-type]
        (lambda: attention_maps(vit().train(), images()), "eval mode"),
        (
            lambda: attention_maps(vit(), images()[0]),
            r"must be images \(B, C, H, W\), got \(1, 8, 15\)",
        ),
        (lambda: mean_attention_distance(vit(), images(0)), "at least one image"),
        (lambda: attention_maps(vit(), images(), query=3), "must be 'class', 'mean' or .* got 3"),  # type: ignore[arg-type]
        (
            lambda: attention_rollout(vit(num_groups=1), images()),
            "blocks that serve several layers",
        ),
        (lambda: attention_rollout(vit(), images(), residual=1.5), "residual .* got 1.5"),
        (lambda: attention_rollout(vit(), images(), discard=1.0), "discard .* got 1.0"),
        (lambda: attention_rollout(vit(), images(), head_fusion="sum"), "head_fusion .* got 'sum'"),  # type: ignore[arg-type]
        (lambda: attention_rollout(vit(Dropping), images()), "needs every patch, but in layer 0"),
    ],
)
def test_errors_say_what_was_expected(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_other_models_are_named() -> None:
    for function in (attention_maps, pooling_attention, mean_attention_distance):
        with pytest.raises(TypeError, match="VisionTransformer or a Swin.* got TokenMerging"):
            function(TokenMerging(vit(), 2), images())  # type: ignore[operator]


def test_rollout_needs_layers_that_share_their_tokens() -> None:
    with pytest.raises(TypeError, match="must be a VisionTransformer, .* got SwinTransformer"):
        attention_rollout(swin(), images())  # type: ignore[arg-type]
