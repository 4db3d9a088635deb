"""Layers that share their blocks, layers with positions of their own, and caches that fit."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attention_core import (
    Causal,
    Decoder,
    DenseBias,
    DenseMask,
    Edges,
    Encoder,
    FeedForward,
    Graph,
    KVCache,
    MultiheadAttention,
    Neighborhood,
    Rotary,
    ScalableSoftmax,
    Sequence,
    Window,
)

DIM, HEADS = 16, 4


@pytest.mark.parametrize(("depth", "groups"), [(4, 1), (4, 2)])
def test_shared_blocks_are_blocks_with_equal_weights(depth: int, groups: int) -> None:
    torch.manual_seed(0)
    shared, apart = (Encoder(DIM, depth, HEADS, num_groups=n).double() for n in (groups, None))
    state = shared.state_dict()
    each = depth // groups
    for layer, block in enumerate(apart.blocks):
        prefix = f"blocks.{layer // each}."
        block.load_state_dict(
            {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        )
    x = torch.randn(2, 7, DIM, dtype=torch.float64)
    torch.testing.assert_close(shared(x), apart(x))
    assert len(shared.blocks) == groups
    inner = shared.intermediates(x, layers=[0, -1])
    torch.testing.assert_close(inner, apart.intermediates(x, layers=[0, -1]))
    with pytest.raises(ValueError, match="depth=4 must be a multiple of num_groups=3"):
        Encoder(DIM, 4, HEADS, num_groups=3)


def test_a_decoder_of_shared_blocks_has_a_cache_for_each_layer() -> None:
    decoder = Decoder(DIM, 3, HEADS, num_groups=1, rotary=Rotary()).double()
    x = torch.randn(2, 6, DIM, dtype=torch.float64)
    cache = KVCache()
    with torch.no_grad():
        pieces = torch.cat([decoder(piece, cache=cache) for piece in x.split(2, dim=1)], dim=1)
        torch.testing.assert_close(pieces, decoder(x))


def test_layers_take_rotary_positions_in_turn() -> None:
    far, near = Rotary(base=100.0), Rotary(base=10.0)
    torch.manual_seed(0)
    encoder = Encoder(DIM, 3, HEADS, rotary=[far, near, None]).double()
    assert [block.attention.rotary for block in encoder.blocks] == [far, near, None]
    # The bases act where they stand: the same block with the other one gives another result
    x = torch.randn(1, 9, DIM, dtype=torch.float64)
    before = encoder(x)
    encoder.blocks[1].attention.rotary = far
    assert (encoder(x) - before).abs().max() > 1e-6
    with pytest.raises(ValueError, match="rotary lists 3 entries for 2 different layers"):
        Encoder(DIM, 4, HEADS, rotary=[far, near, far], num_groups=2)


def test_scale_of_scores() -> None:
    torch.manual_seed(0)
    attention = MultiheadAttention(DIM, HEADS, scale=1.0).double()
    x = torch.randn(2, 5, DIM, dtype=torch.float64)
    q, k, v = (
        y.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for y in (attention.query(x), *attention.key_value(x).chunk(2, -1))
    )
    expected = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(x), attention.out(expected))
    with pytest.raises(ValueError, match="learns its scale; got scale=2"):
        MultiheadAttention(DIM, HEADS, qk_norm="cosine", scale=2.0)


def test_gated_tanh_gelu_and_a_norm_without_bias() -> None:
    network, x = FeedForward(DIM, 24, activation="geglu-tanh"), torch.randn(3, DIM)
    gate, up = network.up(x).chunk(2, -1)
    torch.testing.assert_close(network(x), network.down(F.gelu(gate, approximate="tanh") * up))
    encoder = Encoder(DIM, 1, HEADS, norm="layer-no-bias", eps=1e-3)
    assert isinstance(encoder.norm, nn.LayerNorm)
    assert encoder.norm.bias is None and encoder.norm.eps == 1e-3


@pytest.mark.parametrize(
    "mask",
    [
        Causal() & Neighborhood(3),
        Causal() & Neighborhood((3,)),
        (Neighborhood(2) | Window(4)) & Causal(),
        Neighborhood(2) & Window(9),
    ],
    ids=str,
)
def test_the_span_of_a_mask_is_as_far_as_it_reaches(mask: Any) -> None:
    length = 30
    place = torch.arange(length)
    attended = MultiheadAttention(DIM, HEADS).plan(
        torch.randn(1, length, DIM), Sequence(length), mask, backend="reference"
    )
    pairs = attended.job.pairs()
    allowed = attended.job.allowed(pairs).expand(1, 1, length, length)[0, 0]
    far = (place[:, None] - place).abs()[allowed].max()
    assert mask.lookback == far


def test_masks_that_reach_anywhere_say_so() -> None:
    for mask in (Causal(), ~Neighborhood(3), Causal() | Neighborhood(3)):
        assert mask.lookback == float("inf")


def test_a_cache_with_left_padding_equals_each_text_alone() -> None:
    torch.manual_seed(0)
    decoder = Decoder(DIM, 2, HEADS, rotary=Rotary(), mask=Neighborhood(3)).double()
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    cache = decoder.new_cache(9)
    assert cache.window == 3
    lengths = torch.tensor([6, 4])
    space = Sequence.padded(lengths, side="left")
    x[1, :2] = torch.nan  # padding, which nothing may carry on
    with torch.no_grad():
        decoder(x[:, :6], space, cache=cache)
        steps = torch.cat([decoder(step, cache=cache) for step in x[:, 6:].split(1, 1)], dim=1)
        torch.testing.assert_close(steps[0], decoder(x[:1])[0, -3:])
        torch.testing.assert_close(steps[1], decoder(x[1:, 2:])[0, -3:])


@pytest.mark.parametrize("what", ["mask", "padding", "call", "bias", "count"])
def test_keep_leaves_no_token_out_that_a_tensor_of_all_tokens_speaks_of(what: str) -> None:
    edge_index = torch.randint(20, (2, 30), generator=torch.Generator().manual_seed(0)).unique(
        dim=1
    )
    space, keep = Graph(edge_index, 20), torch.tensor([7, 3])
    may, options = torch.rand(20, 20) < 0.7, dict[str, Any]()
    given = {"mask": DenseMask(may), "padding": DenseMask(may[None, None, :1])}.get(what)
    mask = Edges() if given is None else Edges() & given
    if what in ("bias", "count"):
        options["bias"] = (
            DenseBias(torch.randn(20, 20)) if what == "bias" else ScalableSoftmax(2, 9)
        )
    encoder, x = Encoder(8, 2, 2, mask=mask, **options), torch.randn(1, 20, 8)
    call = may if what == "call" else None
    part = encoder(x, space, mask=call, keep=keep)
    torch.testing.assert_close(part, encoder(x, space, mask=call)[:, keep])
