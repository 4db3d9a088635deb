"""Patterns of attention, each computed by us and by peers: 4 heads of 64, float32.

Every function here makes a forward pass and returns it; what it needs beforehand, such as a dense
mask or our plan, is made before and not measured, as one serves all layers of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torchvision.models.swin_transformer import ShiftedWindowAttention

from attention_core import (
    Bias,
    Causal,
    Graph,
    Grid,
    Mask,
    MultiheadAttention,
    Neighborhood,
    RelativeTable,
    Sequence,
    Space,
    Window,
    attend,
    plan,
)
from attention_core.spaces import Pairs
from benchmarks.measure import Forward

HEADS, DIM = 4, 64
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Setting = tuple[Space, Mask | None, Bias | None]


class Pattern(NamedTuple):
    """One row of the table: what is attended to, and the efficiency or speed-up aimed at.

    Attributes:
        setting: makes the space, the mask and the bias.
        target: least efficiency.
        flex: whether compiled FlexAttention takes part, forward only on a CPU.
    """

    name: str
    setting: Callable[[], Setting]
    target: float | None = None
    flex: bool = False


def window(length: int, *, table: bool = False) -> Setting:
    return Sequence(length), Neighborhood(128), RelativeTable.t5(HEADS) if table else None


def causal_window() -> Setting:
    return Sequence(8192), Causal() & Neighborhood(256), None


def documents() -> Setting:
    generator = torch.Generator().manual_seed(0)
    return Sequence.packed(torch.randint(64, 1025, (32,), generator=generator)), None, None


def grid(*, table: bool = False) -> Setting:
    return Grid(64, 64), Neighborhood(3), RelativeTable.swin(HEADS, 4) if table else None


PATTERNS = [
    Pattern("window ±128, L = 8,192", partial(window, 8192), 0.5, flex=True),
    Pattern("the same + learned T5 table", partial(window, 8192, table=True), 0.35),
    Pattern("causal window 256, L = 8,192", causal_window, 0.4, flex=True),
    Pattern("32 ragged documents of 64 to 1,024", documents, 0.6),
    Pattern("64 × 64 grid, radius 3", grid, 0.2, flex=True),
    Pattern("the same + learned table of offsets", partial(grid, table=True)),
]


def density(setting: Callable[[], Setting]) -> float:
    """The share of all pairs that may attend, counted some queries at a time."""
    space, mask, _ = setting()
    allowed = 0
    for queries in torch.arange(space.length).split(512):
        pairs = Pairs.all((space, space))
        pairs.query, pairs.whole = queries[:, None], False
        terms = [pairs.same_sample, None if mask is None else mask.at(pairs)]
        both = [term for term in terms if term is not None]
        allowed += int(torch.stack(both).all(0).sum())
    return allowed / space.length**2


def tokens(length: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, length, DIM, generator=generator) for _ in range(3))
    return tuple(x.to(DEVICE).requires_grad_() for x in (q, k, v))  # type: ignore[return-value]


def ours(setting: Callable[[], Setting]) -> Forward:
    space, mask, bias = setting()
    bias = bias if bias is None else bias.to(DEVICE)
    made = plan(space, mask, bias, heads=HEADS, head_dim=DIM, device=DEVICE, grad=True)
    q, k, v = tokens(space.length)

    def forward() -> Tensor:
        return attend(q, k, v, bias=bias, plan=made.renewed())  # type: ignore[return-value]

    return forward


def unmasked(setting: Callable[[], Setting]) -> Forward:
    """Return attention without a mask, by which efficiency is measured."""
    q, k, v = tokens(setting()[0].length)
    return lambda: scaled_dot_product_attention(q, k, v)


def dense_mask(setting: Callable[[], Setting]) -> Forward:
    """SDPA with the mask as a tensor, and the bias in it, computed for all pairs."""
    space, mask, bias = setting()
    bias = bias if bias is None else bias.to(DEVICE)
    made = plan(space, mask, bias, heads=HEADS, head_dim=DIM, device=DEVICE, backend="dense")
    q, k, v = tokens(space.length)
    allowed = made.prepared.allowed

    def forward() -> Tensor:
        scores = allowed
        if bias is not None:
            scores = bias(made.prepared.pairs).masked_fill(~allowed, -torch.inf)
        return scaled_dot_product_attention(q, k, v, attn_mask=scores)

    return forward


def flex(setting: Callable[[], Setting]) -> Forward:
    """Compiled FlexAttention with the mask written for it."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    space, _, _ = setting()
    rules: dict[Callable[[], Setting], Any] = {
        PATTERNS[0].setting: lambda b, h, i, j: (i - j).abs() <= 128,
        PATTERNS[2].setting: lambda b, h, i, j: (i >= j) & (i - j <= 256),
        PATTERNS[4].setting: lambda b, h, i, j: (
            ((i // 64 - j // 64).abs() <= 3) & ((i % 64 - j % 64).abs() <= 3)
        ),
    }
    blocks = create_block_mask(
        rules[setting], None, None, space.length, space.length, device=DEVICE
    )
    compiled = torch.compile(flex_attention, dynamic=False)
    q, k, v = tokens(space.length)
    if DEVICE == "cpu":
        q, k, v = (x.detach() for x in (q, k, v))
    return lambda: compiled(q, k, v, block_mask=blocks)  # type: ignore[no-any-return]


def planned(mask: Mask) -> Forward:
    """Return the attention of one image of 56 × 56, its plan included."""
    space = Grid(56, 56)
    q, k, v = tokens(space.length)
    return lambda: attend(q, k, v, space=space, mask=mask)  # type: ignore[no-any-return]


# -- whole layers beside the peer's layer ----------------------------------------------------------


def our_swin() -> Forward:
    space = Grid(56, 56)
    layer = MultiheadAttention(HEADS * DIM, HEADS, bias=RelativeTable.swin(HEADS, 7))
    x = torch.randn(4, 56 * 56, HEADS * DIM, requires_grad=True)
    made = layer.plan(x, space, Window(7, shift=3))

    def forward() -> Tensor:
        return layer(x, plan=made.renewed())  # type: ignore[no-any-return]

    return forward


def their_swin() -> Forward:
    layer = ShiftedWindowAttention(HEADS * DIM, [7, 7], [3, 3], HEADS)
    x = torch.randn(4, 56, 56, HEADS * DIM, requires_grad=True)
    return lambda: layer(x)  # type: ignore[no-any-return]


def graphs() -> tuple[Tensor, Graph]:
    """512 rings of 12 to 38 nodes."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(12, 39, (512,), generator=generator)
    segments = torch.repeat_interleave(sizes)
    node, first = torch.arange(len(segments)), sizes.cumsum(0) - sizes
    following = torch.where(node + 1 < (first + sizes)[segments], node + 1, first[segments])
    edges = torch.stack([torch.cat([node, following]), torch.cat([following, node])])
    return sizes, Graph(edges, len(segments), segments=segments)


def our_graphs() -> Forward:
    _, space = graphs()
    return ours(lambda: (space, None, RelativeTable.hops(HEADS, 8)))


def padded_graphs() -> Forward:
    """Return a padded batch of graphs: SDPA with a dense mask and the bias of every pair."""
    sizes, space = graphs()
    longest = int(sizes.max())
    place = torch.arange(longest)
    valid = place < sizes[:, None]
    node = (sizes.cumsum(0) - sizes)[:, None] + place.where(valid, 0)
    hops = space.edges.hops(
        node[:, :, None].expand(-1, -1, longest), node[:, None, :].expand(-1, longest, -1)
    )
    bucket = hops.clamp(max=9).long() + hops.isinf()
    table = nn.Parameter(torch.zeros(11, HEADS))
    q, k, v = (torch.randn(512, HEADS, longest, DIM, requires_grad=True) for _ in range(3))

    def forward() -> Tensor:
        scores = nn.functional.embedding(bucket, table).permute(0, 3, 1, 2)
        scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
        return scaled_dot_product_attention(q, k, v, attn_mask=scores)

    return forward
