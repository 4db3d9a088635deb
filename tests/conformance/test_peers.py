"""The core against attention that others wrote: torch, FlexAttention, torchvision, networkx."""

from __future__ import annotations

import networkx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch_geometric.nn import TransformerConv
from torchvision.models.swin_transformer import ShiftedWindowAttention

from attention_core import (
    ALiBi,
    Causal,
    DenseMask,
    Dilated,
    Edges,
    Graph,
    Grid,
    Mask,
    Neighborhood,
    Pairs,
    PrefixLM,
    RelativeTable,
    Sequence,
    Window,
    attend,
)
from tests.conformance.cases import BACKENDS, can, gradients

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def qkv(batch: int = 2, heads: int = 4, kv_heads: int = 2, length: int = 7) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(batch, h, length, 8, dtype=torch.float64, requires_grad=True)
        for h in (heads, kv_heads, kv_heads)
    ]


def assert_equal(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    """Values and gradients."""
    torch.testing.assert_close(ours, theirs, **CLOSE)
    for got, wanted in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)


# -- scaled_dot_product_attention ------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["plain", "causal", "mask", "bias", "scale"])
def test_sdpa(form: str, backend: str) -> None:
    inputs = qkv()
    mask, bias = torch.rand(2, 1, 7, 7) > 0.3, torch.randn(1, 4, 7, 7, dtype=torch.float64)
    mask |= torch.eye(7, dtype=torch.bool)
    theirs, ours = {
        "plain": ({}, {}),
        "causal": ({"is_causal": True}, {"mask": Causal()}),
        "mask": ({"attn_mask": mask}, {"mask": mask}),
        "bias": ({"attn_mask": bias}, {"bias": bias}),
        "scale": ({"scale": 0.3}, {"scale": 0.3}),
    }[form]
    expected = scaled_dot_product_attention(*inputs, enable_gqa=True, **theirs)
    assert_equal(attend(*inputs, backend=backend, **ours), expected, inputs)


# -- torch.nn.MultiheadAttention: its True means "may not" -----------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["attn_mask", "by_head", "key_padding_mask", "both"])
def test_masks_of_torch_multihead_attention(form: str, backend: str) -> None:
    """Rule 1: `from_torch_mha` is the one place that inverts."""
    torch.manual_seed(0)
    batch, heads, length, dim = 2, 2, 5, 8
    mha = nn.MultiheadAttention(dim, heads, batch_first=True, dtype=torch.float64)
    x = torch.randn(batch, length, dim, dtype=torch.float64)
    shape = (batch * heads, length, length) if form == "by_head" else (length, length)
    forbidden = (torch.rand(shape) > 0.6) & ~torch.eye(length, dtype=torch.bool)
    padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
    theirs = {
        "attn_mask": {"attn_mask": forbidden},
        "by_head": {"attn_mask": forbidden},
        "key_padding_mask": {"key_padding_mask": padding},
        "both": {
            "attn_mask": forbidden & ~torch.eye(5).roll(1, 0).bool(),
            "key_padding_mask": padding,
        },
    }[form]
    if form == "both":  # leave every row a key, or theirs is NaN
        theirs["attn_mask"][:, 0] = False
    expected, weights = mha(x, x, x, average_attn_weights=False, **theirs)
    q, k, v = (
        y.unflatten(-1, (heads, -1)).transpose(1, 2)
        for y in nn.functional.linear(x, mha.in_proj_weight, mha.in_proj_bias).chunk(3, dim=-1)
    )
    mask = Mask.from_torch_mha(**theirs, heads=heads)
    out, found = attend(q, k, v, mask=mask, backend=backend, return_weights=True)
    out = mha.out_proj(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, expected, **CLOSE)
    torch.testing.assert_close(found, weights, **CLOSE)


def test_masks_of_torch_multihead_attention_of_other_shapes() -> None:
    mask = torch.zeros(6, 3, 3, dtype=torch.bool)
    for wrong in ({"attn_mask": mask}, {"attn_mask": mask, "heads": 4}):
        with pytest.raises(ValueError, match=r"\(6, 3, 3\).*heads"):
            Mask.from_torch_mha(**wrong)
    with pytest.raises(ValueError, match=r"key_padding_mask must be \(B, Lk\), got \(6, 3, 3\)"):
        Mask.from_torch_mha(key_padding_mask=mask)
    with pytest.raises(ValueError, match="needs attn_mask or key_padding_mask"):
        Mask.from_torch_mha()


# -- FlexAttention: its mask_mod and score_mod -----------------------------------------------------

FLEX = {
    "causal window": (Causal() & Neighborhood(2), lambda q, k: (k <= q) & (q - k <= 2)),
    "window": (Neighborhood(2), lambda q, k: (q - k).abs() <= 2),
    "prefix": (PrefixLM(3), lambda q, k: (k <= q) | (k < 3)),
    "dilated": (Dilated(2) | Neighborhood(1),
                lambda q, k: ((q - k) % 2 == 0) | ((q - k).abs() <= 1)),
    "shifted": (Window(3, shift=1), lambda q, k: (q - 1).div(3, rounding_mode="floor")
                == (k - 1).div(3, rounding_mode="floor")),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", FLEX)
@pytest.mark.parametrize(
    ("softcap", "backend"), [(None, b) for b in BACKENDS] + [(1.5, b) for b in can("softcap")]
)
def test_flex_attention(name: str, softcap: float | None, backend: str) -> None:
    """Eager, with their ALiBi slopes and their order: cap, bias, mask."""
    mask, allowed = FLEX[name]
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / 4) for h in range(4)], dtype=torch.float64)

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if softcap:
            score = softcap * torch.tanh(score / softcap)
        score = score - slopes[h] * (q - k).abs()
        return torch.where(allowed(q, k), score, -torch.inf)

    # Eager FlexAttention learns only from full heads and not from keys in groups
    inputs = [x.detach() for x in qkv()]
    theirs = flex_attention(*inputs, score_mod=score_mod, enable_gqa=True)
    ours = attend(*inputs, mask=mask, bias=ALiBi(4), softcap=softcap, backend=backend)
    torch.testing.assert_close(ours, theirs, **CLOSE)


# -- Swin ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("window", [4, 2])
def test_swin(window: int, shift: int, backend: str) -> None:
    """torchvision's shifted windows, rolled and masked, are one mask and one table on a Grid."""
    shift = min(shift, window // 2)
    torch.manual_seed(0)
    heads, dim, side = 2, 8, 8
    theirs = ShiftedWindowAttention(dim, [window, window], [shift, shift], heads).double()
    with torch.no_grad():
        theirs.relative_position_bias_table.normal_()
    table = RelativeTable.swin(heads, window).double()
    table.table = theirs.relative_position_bias_table
    x = torch.randn(2, side, side, dim, dtype=torch.float64)
    q, k, v = (
        y.unflatten(-1, (heads, -1)).transpose(1, 2)
        for y in theirs.qkv(x.flatten(1, 2)).chunk(3, dim=-1)
    )
    # Theirs rolls towards the start, so the tiling moves towards the end by the shift
    mask = Window(window, shift=shift)
    ours = attend(q, k, v, space=Grid(side, side), mask=mask, bias=table, backend=backend)
    ours = theirs.proj(ours.transpose(1, 2).flatten(2)).view_as(x)
    assert_equal(ours, theirs(x), [theirs.relative_position_bias_table, theirs.qkv.weight])


@pytest.mark.parametrize("window", [2, 3, 7])
def test_the_index_of_swin(window: int) -> None:
    """The rows of the table are torchvision's, so that its weights fit ours."""
    theirs = ShiftedWindowAttention(4, [window, window], [0, 0], 1)
    ours = RelativeTable.swin(1, window)
    ours.table = nn.Parameter(torch.arange(len(ours.table)).float()[:, None])
    index = ours(Pairs.all((Grid(window, window),) * 2))[0, 0].long()
    assert torch.equal(index.flatten(), theirs.relative_position_index.flatten())


# -- graphs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(4))
def test_hops_equal_networkx(seed: int, backend: str) -> None:
    """Neighborhood(k) attends to what networkx reaches in k steps, along the edges."""
    drawn = networkx.gnp_random_graph(12, 0.12, seed=seed, directed=True)
    drawn.add_edge(3, 3)
    space = Graph(torch.tensor(list(drawn.edges)).T, 12)
    far = dict(networkx.all_pairs_shortest_path_length(drawn))
    x = torch.zeros(1, 1, 12, 2)
    for mask, reaches in [
        (Neighborhood(0), lambda q, k: q == k),
        (Neighborhood(1), lambda q, k: far[k].get(q, 99) <= 1),
        (Neighborhood(3), lambda q, k: far[k].get(q, 99) <= 3),
        (~Neighborhood(2), lambda q, k: far[k].get(q, 99) > 2),
        (Edges(), lambda q, k: drawn.has_edge(k, q)),
    ]:
        _, weights = attend(x, x, x, space=space, mask=mask, backend=backend, return_weights=True)
        expected = [[reaches(q, k) for k in range(12)] for q in range(12)]
        assert (weights[0, 0] > 0).tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_transformer_conv_of_pyg(backend: str) -> None:
    """Attention along edges is PyG's TransformerConv."""
    torch.manual_seed(0)
    edge_index = torch.randperm(49)[:20].unique()
    edge_index = torch.stack([edge_index // 7, edge_index % 7])
    conv = TransformerConv(6, 4, heads=2, root_weight=False).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    q, k, v = (
        layer(x).view(1, 7, 2, 4).transpose(1, 2)
        for layer in (conv.lin_query, conv.lin_key, conv.lin_value)
    )
    ours = attend(q, k, v, space=Graph(edge_index, 7), mask=Edges(), backend=backend)
    ours = ours.transpose(1, 2).reshape(7, 8)
    assert_equal(ours, conv(x, edge_index), [conv.lin_key.weight, conv.lin_value.weight])


# -- packed documents ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_of_blocks_do_not_leak_across_documents(backend: str) -> None:
    """transformers joins documents and block ids with `or`; here no `|` undoes a segment."""
    space = Sequence.packed([3, 4])
    x = torch.zeros(1, 1, 7, 2)
    blocks = torch.tensor([0, 1, 1, 0, 0, 1, 1])  # the same ids in both documents
    same_block = (blocks[:, None] == blocks)[None, None]
    mask = Causal() | DenseMask(same_block) | ~Causal()
    _, weights = attend(x, x, x, space=space, mask=mask, backend=backend, return_weights=True)
    assert (weights[0, 0, :3, 3:] == 0).all() and (weights[0, 0, 3:, :3] == 0).all()
