"""Rotary, sinusoidal and learned positions follow coordinates, in float32."""

from __future__ import annotations

import math

import pytest
import torch

from attention_core import Graph, Grid, LearnedPosition, Rotary, Sequence, Sinusoidal


def test_rotary_is_multiplication_by_complex_numbers_of_length_one() -> None:
    x = torch.randn(1, 2, 6, 8, dtype=torch.float64)
    theta = 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turn = torch.polar(
        torch.ones(6, 4, dtype=torch.float64), torch.arange(6.0).double()[:, None] * theta
    )
    expected = torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))) * turn).flatten(-2)
    ours = Rotary(layout="interleaved")(x, Sequence(6))
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


def test_layouts_differ_by_a_permutation_of_features() -> None:
    x = torch.randn(1, 2, 6, 8)
    halves = torch.cat([x[..., 0::2], x[..., 1::2]], -1)
    half = Rotary(layout="half")(halves, Sequence(6))
    interleaved = Rotary(layout="interleaved")(x, Sequence(6))
    torch.testing.assert_close(half[..., :4], interleaved[..., 0::2])
    torch.testing.assert_close(half[..., 4:], interleaved[..., 1::2])


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("space", [Sequence(6), Grid(2, 3)], ids=["sequence", "grid"])
def test_scores_depend_on_offsets_alone(layout: str, space: Grid | Sequence) -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).expand(2, 1, 1, 6, 8)
    rotary = Rotary(space.axes, layout=layout)
    scores = (rotary(q, space) @ rotary(k, space).mT)[0, 0]
    offset = space.coordinates[None] - space.coordinates[:, None]
    for a in range(6):
        for b in range(6):
            same = (offset == offset[a, b]).all(-1)
            torch.testing.assert_close(
                scores[same], scores[a, b].expand(int(same.sum())), atol=1e-5, rtol=1e-5
            )


def test_axial_rotary_turns_each_part_of_the_head_by_its_axis() -> None:
    x = torch.randn(1, 1, 6, 8)
    grid = Rotary(2, layout="interleaved")(x, Grid(2, 3))
    one = Rotary(1, layout="interleaved")
    rows = one(x[..., :4].view(1, 1, 2, 3, 4).transpose(2, 3), Sequence(2)).transpose(2, 3)
    columns = one(x[..., 4:].view(1, 1, 2, 3, 4), Sequence(3))
    torch.testing.assert_close(grid, torch.cat([rows, columns], -1).view(1, 1, 6, 8))


def test_special_tokens_do_not_turn() -> None:
    x = torch.randn(1, 2, 7, 8)
    turned = Rotary(2)(x, Grid(2, 3, special=1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(turned[:, :, 1:], Rotary(2)(x[:, :, 1:], Grid(2, 3)))


def test_part_of_a_head_turns() -> None:
    x = torch.randn(1, 2, 5, 8)
    turned = Rotary(dim=4)(x, Sequence(5))
    assert torch.equal(turned[..., 4:], x[..., 4:])
    torch.testing.assert_close(turned[..., :4], Rotary()(x[..., :4], Sequence(5)))


def test_a_graph_turns_by_its_spectral_coordinates() -> None:
    x, coordinates = torch.randn(1, 1, 3, 8), torch.randn(3, 2)
    graph = Graph(torch.tensor([[0], [1]]), 3, coordinates=coordinates, special=1)
    turned = Rotary(2)(torch.cat([x[:, :, :1], x], 2), graph)
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(turned[0, 0, 1:].norm(dim=-1), x[0, 0].norm(dim=-1))


def test_angles_are_float32_under_autocast() -> None:
    """Rule 10: at position 10,000, bfloat16 would be wrong by whole turns."""
    space, x = Sequence(3, start=10_000), torch.randn(1, 1, 3, 8)
    expected = Rotary()(x, space)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Rotary()(x, space), expected)
        assert torch.equal(Sinusoidal(8)(space), Sinusoidal(8)(Sequence(3, start=10_000)))
        in_half = Rotary()(x.bfloat16(), space)
    assert in_half.dtype == torch.bfloat16
    torch.testing.assert_close(in_half.float(), expected, atol=0.03, rtol=0.03)


def test_sinusoidal_is_the_papers() -> None:
    table = Sinusoidal(8)(Sequence(5))
    for position in range(5):
        for i in range(4):
            angle = position / 10_000 ** (2 * i / 8)
            assert table[position, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_sinusoidal_gives_each_axis_its_part_and_special_tokens_nothing() -> None:
    table = Sinusoidal(8, axes=2, layout="half")(Grid(2, 3, special=1))
    assert table[0].eq(0).all()
    one = Sinusoidal(4, layout="half")(Sequence(3))
    torch.testing.assert_close(table[1:].view(2, 3, 8)[1, :, 4:], one)
    torch.testing.assert_close(table[1:].view(2, 3, 8)[:, 0, :4], one[:2])


def test_learned_positions_follow_dropped_and_packed_tokens() -> None:
    positions = LearnedPosition((2, 3), 4, special=1)
    space = Grid(2, 3, special=1)
    assert torch.equal(positions(space), positions.table)
    index = torch.tensor([0, 2, 6])
    assert torch.equal(positions(space.keep(index)), positions.table[index])
    packed = positions(Grid.packed([(1, 2), (2, 1)], special=1))
    assert torch.equal(packed, positions.table[[0, 1, 2, 0, 1, 4]])
    each = torch.tensor([[0, 1], [0, 5]])
    assert torch.equal(positions(space.keep(each)), positions.table[each])


def test_errors_name_what_came() -> None:
    with pytest.raises(ValueError, match="learned for places up to \\(4,\\).*reaches \\(5,\\)"):
        LearnedPosition(4, 8)(Sequence(5))
    with pytest.raises(ValueError, match="vectors for 0 special tokens"):
        LearnedPosition(4, 8)(Sequence(3, special=1))
    with pytest.raises(ValueError, match="positions have 2 axes, a sequence of 5 tokens has 1"):
        Rotary(2)(torch.randn(1, 1, 5, 8), Sequence(5))
    with pytest.raises(ValueError, match="multiple of 2 · axes = 4, got 6"):
        Rotary(2)(torch.randn(1, 1, 6, 6), Grid(2, 3))
    with pytest.raises(ValueError, match="dim=16 exceeds the size of a head, 8"):
        Rotary(dim=16)(torch.randn(1, 1, 5, 8), Sequence(5))
    with pytest.raises(ValueError, match="layout must be"):
        Rotary(layout="neox")


def test_rotary_comes_round_where_an_axis_wraps() -> None:
    """With whole turns only the nearest image matters; other frequencies are refused."""
    n = 5
    rotary = Rotary(2, frequencies=[2 * math.pi / n, 4 * math.pi / n])
    x = torch.randn(8).expand(1, 1, n, 8)
    turned = rotary(x, Grid(1, n, wrap=(False, True)))[0, 0]
    scores = turned @ turned.T
    torch.testing.assert_close(scores.roll((1, 1), (0, 1)), scores)
    assert rotary(x, Grid(1, n)).shape == x.shape
    for wrong in (Rotary(2), Rotary(2, frequencies=[2 * math.pi / n, 0.3]), Rotary(2, extent=3)):
        with pytest.raises(ValueError, match=r"not come round .*frequencies=\[2π m / [53]"):
            wrong(x, Grid(1, n, wrap=(False, True)))
