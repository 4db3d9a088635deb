"""Positions of patches against timm and transformers, and through dropping, packing and padding."""

from typing import Any

import pytest
import timm.layers as timm_layers
import torch
from timm.layers.pos_embed_sincos import (
    RotaryEmbeddingDinoV3,
    apply_rot_embed_cat,
    build_rotary_pos_embed,
    build_sincos2d_pos_embed,
)
from torch import nn
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTRopePositionEmbedding
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from attention_core import Grid, Rotary, Sequence, Sinusoidal
from vision import CenteredRotary, ResampledPosition

SIZES = [(4, 4), (7, 7), (3, 5), (2, 9), (1, 1)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("special", [0, 1])
def test_resampling_is_timms(size: tuple[int, int], special: int) -> None:
    positions = ResampledPosition((4, 6), 8, special=special)
    expected = timm_layers.resample_abs_pos_embed(
        positions.table[None], new_size=size, old_size=(4, 6), num_prefix_tokens=special
    )
    torch.testing.assert_close(positions(Grid(*size, special=special)), expected[0])


def test_a_grid_of_the_tables_size_has_the_table_itself() -> None:
    positions = ResampledPosition((3, 2), 8, special=1)
    assert torch.equal(positions(Grid(3, 2, special=1)), positions.table)


def test_a_row_for_a_special_token_that_is_not_there_is_left_out() -> None:
    positions = ResampledPosition((3, 2), 8, special=1)
    for space in (Grid(3, 2), Grid.packed([(3, 2)])):
        assert torch.equal(positions(space), positions.table[1:])


def test_compiled_it_takes_any_size_and_has_its_gradient() -> None:
    torch._dynamo.reset()
    positions = ResampledPosition((3, 2), 8, special=1)
    compiled = torch.compile(positions, backend="aot_eager")
    for size in ((3, 2), (5, 4), (6, 4), (5, 7)):
        space = Grid(*size, special=1)
        gradients = []
        for module in (compiled, positions):
            positions.zero_grad()
            module(space).square().sum().backward()
            gradients.append(positions.table.grad)
        torch.testing.assert_close(*gradients)


def test_special_tokens_without_a_vector_get_zeros() -> None:
    """Registers always, and the class token where the table has no row for it."""
    for special in (0, 1):
        positions = ResampledPosition((3, 2), 8, special=special)
        for space in (Grid(3, 2, special=4), Grid.packed([(3, 2), (1, 4)], special=4)):
            found = positions(space)[space.special].view(-1, 4, 8)
            assert torch.equal(
                found[:, :special], positions.table[:special].expand_as(found[:, :special])
            )
            assert found[:, special:].eq(0).all()


@pytest.mark.parametrize(
    "position",
    [
        ResampledPosition((4, 6), 8, special=1),
        Sinusoidal(8, axes=2),
        Rotary(axes=2, extent=4.0),
        CenteredRotary().eval(),
    ],
    ids=lambda p: type(p).__name__,
)
def test_positions_follow_packed_padded_and_dropped_patches(position: nn.Module) -> None:
    def of(space: Grid) -> torch.Tensor:
        if isinstance(position, Rotary):
            angle = position.angles(space, 8)
            return angle[:, 0] if angle.ndim == 4 else angle
        return position(space)

    alone = [of(Grid(*size, special=2)) for size in SIZES]
    packed = Grid.packed(SIZES, special=2)
    torch.testing.assert_close(of(packed), torch.cat(alone))
    padded = Grid.padded(SIZES, special=2)
    for row, present, one in zip(of(padded), padded.valid, alone, strict=True):
        torch.testing.assert_close(row[present], one)
    index = torch.tensor([0, 1, 3, 7, 20, 21, 60])
    torch.testing.assert_close(of(packed.keep(index)), torch.cat(alone)[index])
    some = torch.tensor([[0, 1, 5], [0, 1, 9]])
    torch.testing.assert_close(of(Grid(3, 5, special=2).keep(some)), alone[2][some])
    twice = Grid(3, 5, special=2).keep(torch.arange(12)).keep(some)
    torch.testing.assert_close(of(twice), alone[2][some])


def test_resampled_rows_get_their_gradient_packed_as_alone() -> None:
    positions = ResampledPosition((4, 6), 8)
    weight = torch.randn(sum(h * w for h, w in SIZES), 8)
    (positions(Grid.packed(SIZES)) * weight).sum().backward()
    packed, positions.table.grad = positions.table.grad, None
    alone = torch.cat([positions(Grid(*size)) for size in SIZES])
    (alone * weight).sum().backward()
    assert packed is not None and packed.abs().sum() > 0
    torch.testing.assert_close(packed, positions.table.grad)


@pytest.mark.parametrize("size", SIZES)
def test_sines_and_cosines_are_timms_and_transformers(size: tuple[int, int]) -> None:
    for layout, interleave in (("sines-first", False), ("half", True)):
        ours = Sinusoidal(16, axes=2, layout=layout)(Grid(*size))  # type: ignore[arg-type]
        theirs = build_sincos2d_pos_embed(list(size), 16, interleave_sin_cos=interleave)
        torch.testing.assert_close(ours, theirs)
    ours = Sinusoidal(16, axes=2, layout="half")(Grid(*size, special=1))
    theirs = build_2d_sinusoidal_position_embedding(*size, 16, cls_token=True)
    torch.testing.assert_close(ours, theirs)


def test_columns_before_rows_as_masked_autoencoders_have_them() -> None:
    """Their first half of the features is that of the column ("here w goes first")."""
    ours = Sinusoidal(16, axes=2, layout="half", reverse=True)(Grid(3, 5)).view(3, 5, 16)
    assert torch.equal(ours[0, :, :8], ours[2, :, :8])
    rows_first = build_2d_sinusoidal_position_embedding(3, 5, 16).view(3, 5, 16)
    torch.testing.assert_close(ours, rows_first.roll(8, -1))


@pytest.mark.parametrize("size", SIZES)
def test_a_relative_extent_is_that_of_eva02(size: tuple[int, int]) -> None:
    rotary = Rotary(axes=2, layout="interleaved", extent=16)
    sin, cos = build_rotary_pos_embed(list(size), dim=16, in_pixels=False, ref_feat_shape=[16, 16])
    x = torch.randn(2, 3, size[0] * size[1] + 1, 16)
    turned = apply_rot_embed_cat(x[:, :, 1:], torch.cat([sin, cos], -1))
    expected = torch.cat([x[:, :, :1], turned], dim=2)
    torch.testing.assert_close(rotary(x, Grid(*size, special=1)), expected)


@pytest.mark.parametrize("size", SIZES)
def test_centres_are_those_of_dinov3(size: tuple[int, int]) -> None:
    rotary = CenteredRotary().eval()
    x = torch.randn(2, 3, size[0] * size[1] + 5, 16)
    ours = rotary(x, Grid(*size, special=5))
    theirs = RotaryEmbeddingDinoV3(16).eval().get_embed(list(size))
    turned = apply_rot_embed_cat(x[:, :, 5:], theirs, half=True)
    torch.testing.assert_close(ours, torch.cat([x[:, :, :5], turned], dim=2))
    config = DINOv3ViTConfig(hidden_size=32, num_attention_heads=2, patch_size=2)
    cos, sin = DINOv3ViTRopePositionEmbedding(config).eval()(
        torch.zeros(1, 3, 2 * size[0], 2 * size[1])
    )
    angle = rotary.angles(Grid(*size), 16)
    torch.testing.assert_close(angle.cos(), cos[..., :8])
    torch.testing.assert_close(angle.sin(), sin[..., :8])


@pytest.mark.parametrize(
    "changes",
    [
        {"shift": 0.4},
        {"jitter": 1.5},
        {"rescale": 2.0},
        {"shift": 0.1, "jitter": 2.0, "rescale": 1.2},
    ],
)
def test_centres_vary_in_training_as_in_dinov3(changes: dict[str, float]) -> None:
    """The same random numbers, the same angles: of each axis, or of both."""
    theirs = RotaryEmbeddingDinoV3(16, **{f"{k}_coords": v for k, v in changes.items()}).train()
    ours = CenteredRotary(**changes).train()  # type: ignore[arg-type]
    torch.manual_seed(3)
    sin, cos = theirs.get_embed([3, 5]).chunk(2, -1)
    torch.manual_seed(3)
    angle = ours.angles(Grid(3, 5, special=1), 16)
    assert angle[0].eq(0).all()
    torch.testing.assert_close(angle[1:].sin(), sin[:, :8])
    torch.testing.assert_close(angle[1:].cos(), cos[:, :8])
    still = CenteredRotary().eval().angles(Grid(3, 5, special=1), 16)
    assert not torch.allclose(angle, still)
    torch.testing.assert_close(ours.eval().angles(Grid(3, 5, special=1), 16), still)


def test_frequencies_of_ones_own() -> None:
    given = [1.0, 0.5, 0.25, 0.125]
    angle = Rotary(axes=2, frequencies=given).angles(Grid(2, 3), 16)
    torch.testing.assert_close(angle[4], torch.tensor([*given, *given]))
    base = Rotary(axes=2, base=100.0)
    periods = [100.0 ** (i / 4) for i in range(4)]
    same = Rotary(axes=2, frequencies=[1 / period for period in periods])
    torch.testing.assert_close(same.angles(Grid(4, 3), 16), base.angles(Grid(4, 3), 16))
    with pytest.raises(ValueError, match="4 frequencies, but dim=8 and axes=2 need 2"):
        Rotary(axes=2, frequencies=given).angles(Grid(2, 3), 8)


def test_a_relative_position_is_the_same_in_half_precision() -> None:
    x = torch.randn(1, 1, 12, 16)
    for rotary in (Rotary(axes=2, extent=16), CenteredRotary().eval()):
        expected = rotary.angles(Grid(3, 4), 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(rotary.angles(Grid(3, 4), 16), expected)
            assert rotary(x.bfloat16(), Grid(3, 4)).dtype == torch.bfloat16


def test_what_does_not_fit_is_named() -> None:
    cases: list[tuple[Any, str]] = [
        (lambda: CenteredRotary(jitter=0.5), "jitter must be a factor of at least 1, got 0.5"),
        (lambda: CenteredRotary(rescale=0.0), "rescale must be a factor of at least 1, got 0.0"),
        (lambda: CenteredRotary(shift=-1.0), "shift must be at least 0, got -1.0"),
        (lambda: Rotary(axes=2, extent=0), "extent must be a finite number above 0, got 0"),
        (lambda: Rotary(axes=2, extent=[16]), r"for each of 2 axes; got \[16\]"),
        (lambda: Rotary(extent=16).angles(Sequence(4), 8), "a sequence of 4 tokens is none"),
        (lambda: Rotary(axes=3, extent=16).angles(Grid(2, 2), 12), "positions have 3 axes"),
        (lambda: ResampledPosition((2, 2), 8)(Sequence(4)), "those of a Grid.*a sequence of 4"),
        (lambda: ResampledPosition((2, 2), 8)(Grid(2, 2, 2)), "a 2×2×2 grid"),
        (lambda: Sinusoidal(8, layout="other"), "'half', 'interleaved' or 'sines-first', got"),  # type: ignore[arg-type]
        (lambda: Rotary(layout="sines-first"), "'half' or 'interleaved', got 'sines-first'"),  # type: ignore[arg-type]
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
