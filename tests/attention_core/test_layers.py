"""The layers, against torch's own where it has them and against their papers where not."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from timm.layers import AttentionPoolLatent, SwiGLU
from torch import Tensor, nn
from transformers.activations import QuickGELUActivation

from attention_core import (
    AttentionPool,
    Block,
    Causal,
    Decoder,
    Edges,
    Encoder,
    FeedForward,
    Graph,
    Grid,
    MultiheadAttention,
    Neighborhood,
    RelativeTable,
    Rotary,
    Sequence,
    Window,
    attend,
    pool,
)

DIM, HEADS = 16, 4


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def from_torch(theirs: nn.MultiheadAttention, ours: MultiheadAttention) -> None:
    """Copy the weights of torch's layer into ours."""
    width = DIM
    with torch.no_grad():
        ours.query.weight.copy_(theirs.in_proj_weight[:width])
        ours.key_value.weight.copy_(theirs.in_proj_weight[width:])
        ours.query.bias.copy_(theirs.in_proj_bias[:width])
        ours.key_value.bias.copy_(theirs.in_proj_bias[width:])
        ours.out.load_state_dict(theirs.out_proj.state_dict())


class TestMultiheadAttention:
    def test_equals_torch_with_its_weights(self) -> None:
        theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        nn.init.normal_(theirs.in_proj_bias)
        ours = MultiheadAttention(DIM, HEADS)
        from_torch(theirs, ours)
        x, context = torch.randn(2, 5, DIM), torch.randn(2, 7, DIM)
        torch.testing.assert_close(ours(x), theirs(x, x, x)[0])
        torch.testing.assert_close(ours(x, context), theirs(x, context, context)[0])
        padding = torch.arange(7) >= torch.tensor([[7], [3]])
        expected = theirs(x, context, context, key_padding_mask=padding)[0]
        space = (Sequence(5), Sequence.padded([7, 3]))
        torch.testing.assert_close(ours(x, context, space=space), expected)

    def test_grouped_heads_equal_repeated_heads(self) -> None:
        grouped = MultiheadAttention(DIM, HEADS, kv_heads=2)
        full = MultiheadAttention(DIM, HEADS)
        state = grouped.state_dict()
        for name in ("key_value.weight", "key_value.bias"):
            heads = state[name].unflatten(0, (2, 2, DIM // HEADS))
            state[name] = heads.repeat_interleave(2, dim=1).flatten(0, 2)
        full.load_state_dict(state)
        x = torch.randn(2, 5, DIM)
        torch.testing.assert_close(grouped(x), full(x))

    def test_packed_tokens_need_no_batch(self) -> None:
        layer = MultiheadAttention(DIM, HEADS, rotary=Rotary())
        x = torch.randn(8, DIM)
        packed = layer(x, space=Sequence.packed([3, 5]))
        assert packed.shape == x.shape
        torch.testing.assert_close(packed[:3], layer(x[None, :3])[0])
        torch.testing.assert_close(packed[3:], layer(x[None, 3:])[0])

    @pytest.mark.parametrize("qk_norm", ["layer", "rms"])
    def test_qk_norm_makes_scores_independent_of_the_scale_of_tokens(self, qk_norm: str) -> None:
        layer = MultiheadAttention(DIM, HEADS, qk_norm=qk_norm)
        x = torch.randn(1, 6, DIM)
        value_scaled = layer(x * 100)
        torch.testing.assert_close(value_scaled / 100, layer(x), atol=1e-4, rtol=1e-3)

    def test_cosine_attention_is_swin_v2s(self) -> None:
        layer = MultiheadAttention(DIM, HEADS, qk_norm="cosine")
        with torch.no_grad():  # beyond the clamp at ln 100, and below it
            layer.log_temperature.copy_(torch.tensor([9.0, 0.5, 1.0, 2.0])[:, None, None])
        x = torch.randn(1, 6, DIM)
        q = layer.query(x).view(1, 6, HEADS, -1).transpose(1, 2)
        k, v = (t.view(1, 6, HEADS, -1).transpose(1, 2) for t in layer.key_value(x).chunk(2, -1))
        cosine = nn.functional.normalize(q, dim=-1) @ nn.functional.normalize(k, dim=-1).mT
        scale = torch.clamp(layer.log_temperature, max=math.log(1 / 0.01)).exp()
        expected = (cosine * scale).softmax(-1) @ v
        torch.testing.assert_close(layer(x), layer.out(expected.transpose(1, 2).flatten(2)))

    def test_gate_multiplies_the_output_of_each_head(self) -> None:
        gated, plain = MultiheadAttention(DIM, HEADS, gate=True), MultiheadAttention(DIM, HEADS)
        plain.load_state_dict({k: v for k, v in gated.state_dict().items() if "gate" not in k})
        x = torch.randn(2, 5, DIM)
        with torch.no_grad():
            gated.gate.weight.zero_()
            gated.gate.bias.fill_(math.log(3))  # sigmoid = 3/4
            plain.out.weight.mul_(0.75)
        torch.testing.assert_close(gated(x), plain(x))

    def test_sink_learns(self) -> None:
        layer = MultiheadAttention(DIM, HEADS, sink=True)
        layer(torch.randn(2, 5, DIM)).square().sum().backward()
        assert layer.sink.grad.abs().min() > 0

    @pytest.mark.parametrize("backend", ["reference", "dense", "edges"])
    def test_dropout_is_off_in_eval(self, backend: str) -> None:
        """Rule 12."""
        layer = MultiheadAttention(DIM, HEADS, attention_dropout=0.5)
        x = torch.randn(2, 9, DIM)
        without = MultiheadAttention(DIM, HEADS)
        without.load_state_dict(layer.state_dict())
        assert not torch.equal(layer(x, backend=backend), layer(x, backend=backend))
        torch.testing.assert_close(layer.eval()(x, backend=backend), without(x, backend=backend))

    def test_padding_gives_zeros(self) -> None:
        y = MultiheadAttention(DIM, HEADS)(torch.randn(2, 4, DIM), space=Sequence.padded([4, 1]))
        assert y[1, 1:].eq(0).all() and y[1, 0].ne(0).any()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"heads": 3}, "dim=16 must be a multiple of heads=3"),
            ({"heads": 4, "kv_heads": 3}, "heads=4 must be a multiple of kv_heads=3"),
            ({"heads": 0}, "heads must be at least 1, got 0"),
            ({"heads": 4, "qk_norm": "batch"}, "qk_norm must be"),
            ({"heads": 4, "attention_dropout": 1.0}, "attention_dropout must be in"),
        ],
    )
    def test_wrong_options_are_named(self, arguments: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            MultiheadAttention(DIM, **arguments)

    def test_wrong_inputs_are_named(self) -> None:
        layer = MultiheadAttention(DIM, HEADS)
        with pytest.raises(ValueError, match=r"x must be float \(B, L, 16\).*got .*\(2, 5, 8\)"):
            layer(torch.randn(2, 5, 8))
        with pytest.raises(ValueError, match="5 queries and 5 keys, but q is"):
            layer(torch.randn(2, 4, DIM), space=Sequence(5))
        with pytest.raises(ValueError, match="cross-attention needs space="):
            layer(torch.randn(2, 4, DIM), torch.randn(2, 3, DIM), space=Sequence(4))


class TestFeedForward:
    def test_quick_gelu_is_clips(self) -> None:
        layer, x = FeedForward(DIM, activation="quick-gelu"), torch.randn(3, DIM)
        torch.testing.assert_close(layer(x), layer.down(QuickGELUActivation()(layer.up(x))))

    def test_a_norm_before_the_last_matrix_is_eva02s(self) -> None:
        norm = partial(nn.LayerNorm, eps=1e-3)
        theirs, x = SwiGLU(DIM, 24, norm_layer=norm), torch.randn(3, DIM)
        ours = FeedForward(DIM, 24, activation="swiglu", norm="layer", eps=1e-3)
        nn.init.normal_(theirs.norm.weight)
        gate, up = theirs.fc1_g, theirs.fc1_x
        ours.up.weight.data = torch.cat([gate.weight, up.weight]).detach()
        ours.up.bias.data = torch.cat([gate.bias, up.bias]).detach()
        ours.norm.load_state_dict(theirs.norm.state_dict())
        ours.down.load_state_dict(theirs.fc2.state_dict())
        torch.testing.assert_close(ours(x), theirs(x))
        block = Block(DIM, HEADS, norm="rms", eps=1e-4, feed_forward_norm=True)
        assert isinstance(block.feed_forward.norm, nn.RMSNorm)
        assert block.feed_forward.norm.eps == 1e-4

    def test_gelu_equals_torch(self) -> None:
        layer, x = FeedForward(DIM), torch.randn(3, DIM)
        assert layer.up.out_features == 4 * DIM
        torch.testing.assert_close(layer(x), layer.down(nn.functional.gelu(layer.up(x))))

    @pytest.mark.parametrize(
        ("activation", "function"),
        [("swiglu", nn.functional.silu), ("geglu", nn.functional.gelu)],
    )
    def test_gated_forms_gate_first(self, activation: str, function: object) -> None:
        layer, x = FeedForward(DIM, 24, activation=activation), torch.randn(3, DIM)
        gate, value = layer.up(x)[:, :24], layer.up(x)[:, 24:]
        torch.testing.assert_close(layer(x), layer.down(function(gate) * value))

    def test_gated_forms_have_about_as_many_parameters(self) -> None:
        count = {
            a: sum(p.numel() for p in FeedForward(96, activation=a).parameters())
            for a in ("gelu", "swiglu")
        }
        assert 0.98 < count["swiglu"] / count["gelu"] < 1.02

    def test_unknown_activation(self) -> None:
        with pytest.raises(ValueError, match="activation must be one of gelu, gelu-tanh"):
            FeedForward(DIM, activation="swish")


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block_equals_torchs_encoder_layer(norm: str) -> None:
    theirs = nn.TransformerEncoderLayer(
        DIM, HEADS, 32, dropout=0.0, norm_first=norm == "pre", batch_first=True, activation="relu"
    )
    ours = Block(DIM, HEADS, hidden=32, norm_order=norm, eps=1e-5, activation="relu")
    from_torch(theirs.self_attn, ours.attention)
    ours.feed_forward.up.load_state_dict(theirs.linear1.state_dict())
    ours.feed_forward.down.load_state_dict(theirs.linear2.state_dict())
    ours.attention_residual.norm.load_state_dict(theirs.norm1.state_dict())
    ours.feed_forward_residual.norm.load_state_dict(theirs.norm2.state_dict())
    x = torch.randn(2, 5, DIM)
    torch.testing.assert_close(ours(x), theirs(x))


def test_layer_scale_starts_near_the_identity() -> None:
    block = Block(DIM, HEADS, layer_scale=1e-6, norm="rms")
    x = torch.randn(2, 5, DIM)
    torch.testing.assert_close(block(x), x, atol=1e-4, rtol=0)
    assert not torch.equal(block(x), x)


class TestDropPath:
    def test_drops_whole_samples_of_a_batch(self) -> None:
        block = Block(DIM, HEADS, drop_path=0.5)
        x = torch.randn(64, 3, DIM)
        changed = (block(x) != x).flatten(1)
        assert set(changed.any(1).tolist()) == {True, False}
        torch.testing.assert_close(block.eval()(x), block(x))

    def test_drops_whole_samples_of_a_packed_row(self) -> None:
        block = Block(DIM, HEADS, drop_path=0.5)
        x, space = torch.randn(192, DIM), Sequence.packed([3] * 64)
        same = (block(x, plan=block.attention.plan(x, space)) == x).all(-1).view(64, 3)
        assert torch.equal(same.all(1), same.any(1))
        assert set(same[:, 0].tolist()) == {True, False}


class TestEncoder:
    def test_masks_are_taken_in_turn(self) -> None:
        encoder = Encoder(DIM, 4, HEADS, mask=[None, Neighborhood(1)], final_norm=False)
        x = torch.randn(1, 6, DIM)
        y = x
        for layer, mask in enumerate([None, Neighborhood(1)] * 2):
            block = encoder.blocks[layer]
            y = block(y, plan=block.attention.plan(y, Sequence(6), mask))
        torch.testing.assert_close(encoder(x), y)

    def test_a_shared_bias_has_one_set_of_parameters(self) -> None:
        shared = Encoder(DIM, 3, HEADS, bias=RelativeTable.t5(HEADS))
        own = Encoder(DIM, 3, HEADS, bias=[RelativeTable.t5(HEADS) for _ in range(3)])
        tables = [n for n, _ in shared.named_parameters() if n.endswith("table")]
        assert tables == ["biases.0.table"]
        assert sum(n.endswith("table") for n in own.state_dict()) == 3
        for encoder in (shared, own):
            encoder(torch.randn(2, 5, DIM)).square().sum().backward()
            assert all(bias.table.grad.ne(0).any() for bias in encoder.biases)

    def test_two_steps_with_one_space(self) -> None:
        """Nothing of one forward's graph may live on in the space."""
        encoder = Encoder(DIM, 2, HEADS, bias=RelativeTable.t5(HEADS), mask=Causal())
        space = Sequence(5)
        for _ in range(2):
            encoder(torch.randn(2, 5, DIM), space).sum().backward()

    def test_the_mask_of_a_call_joins_the_layers_own(self) -> None:
        encoder = Encoder(DIM, 2, HEADS, mask=Neighborhood(2))
        both = Encoder(DIM, 2, HEADS, mask=Neighborhood(2) & Causal())
        both.load_state_dict(encoder.state_dict())
        x = torch.randn(1, 7, DIM)
        torch.testing.assert_close(encoder(x, mask=Causal()), both(x))

    def test_padded_packed_and_alone_agree(self) -> None:
        encoder = Encoder(DIM, 2, HEADS, rotary=Rotary(), bias=RelativeTable.t5(HEADS)).eval()
        lengths = [3, 5, 1]
        texts = [torch.randn(n, DIM) for n in lengths]
        packed = encoder(torch.cat(texts), Sequence.packed(lengths)).split(lengths)
        padded = encoder(
            nn.utils.rnn.pad_sequence(texts, batch_first=True), Sequence.padded(lengths)
        )
        for row, (text, of_packed) in enumerate(zip(texts, packed, strict=True)):
            alone = encoder(text[None])[0]
            torch.testing.assert_close(of_packed, alone)
            torch.testing.assert_close(padded[row, : len(text)], alone)
            assert padded[row, len(text) :].eq(0).all()

    def test_drops_tokens_and_their_places_follow(self) -> None:
        encoder = Encoder(DIM, 2, HEADS, rotary=Rotary(2), bias=RelativeTable.swin(HEADS, 4))
        space, x = Grid(4, 4, special=1), torch.randn(2, 17, DIM)
        index = torch.tensor([0, 1, 6, 11, 16])
        kept = torch.zeros(1, 1, 17, 17, dtype=torch.bool)
        kept[..., index] = True
        expected = encoder(x, space, mask=kept)[:, index]
        torch.testing.assert_close(encoder(x[:, index], space.keep(index)), expected)

    def test_one_encoder_serves_every_space(self) -> None:
        encoder = Encoder(DIM, 2, HEADS, mask=Neighborhood(1)).eval()
        graph = Graph(torch.tensor([[0, 1, 2], [1, 2, 3]]), 6)
        for space in (Sequence(6), Grid(2, 3), graph):
            assert encoder(torch.randn(6, DIM), space).isfinite().all()
        assert encoder(torch.randn(6, DIM), graph, mask=Edges()).isfinite().all()

    def test_wrong_space_is_named(self) -> None:
        with pytest.raises(
            ValueError, match=r"x is \(2, 5, 16\), but its space is a sequence of 4"
        ):
            Encoder(DIM, 1, HEADS)(torch.randn(2, 5, DIM), Sequence(4))
        with pytest.raises(TypeError, match="norm_place"):
            Encoder(DIM, 1, HEADS, norm_place="pre")

    def test_shifted_windows_equal_rolled_and_partitioned_ones(self) -> None:
        """What Swin does by rolling, partitioning and masking the seam, on an 8×8 grid."""
        q, k, v = torch.randn(3, 1, HEADS, 64, 8).unbind(0)
        ours = attend(q, k, v, space=Grid(8, 8), mask=Window(4, shift=2))

        def windows(t: Tensor) -> Tensor:
            t = torch.roll(t.view(HEADS, 8, 8, -1), (-2, -2), (1, 2))
            return (
                t.unflatten(1, (2, 4))
                .unflatten(3, (2, 4))
                .transpose(2, 3)
                .flatten(3, 4)
                .flatten(1, 2)
            )

        region = torch.tensor([0] * 4 + [1] * 2 + [2] * 2)
        cells = (region[:, None] * 3 + region).view(1, 2, 4, 2, 4).transpose(2, 3).reshape(4, 16)
        same = cells[:, :, None] == cells[:, None, :]
        out = nn.functional.scaled_dot_product_attention(
            windows(q), windows(k), windows(v), attn_mask=same
        )
        out = out.view(HEADS, 2, 2, 4, 4, -1).transpose(2, 3).reshape(HEADS, 8, 8, -1)
        expected = torch.roll(out, (2, 2), (1, 2)).reshape(1, HEADS, 64, -1)
        torch.testing.assert_close(ours, expected)


class TestPooling:
    @pytest.mark.parametrize("how", ["mean", "sum", "max"])
    def test_pool_equals_torch_on_each_sample(self, how: str) -> None:
        lengths = [3, 5, 1]
        samples = [torch.randn(n, DIM) for n in lengths]
        reduce = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax}[how]
        expected = torch.stack([reduce(sample, dim=0) for sample in samples])
        packed = pool(torch.cat(samples), Sequence.packed(lengths), how)
        torch.testing.assert_close(packed, expected)
        padded = nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=1e9)
        torch.testing.assert_close(pool(padded, Sequence.padded(lengths), how), expected)

    def test_special_tokens_are_pooled_apart(self) -> None:
        space = Sequence.packed([2, 3], special=1)
        x = torch.arange(7.0)[:, None].expand(7, DIM)
        assert pool(x, space, "special")[:, 0].tolist() == [0, 3]
        assert pool(x, space, "mean")[:, 0].tolist() == [1.5, 5]
        with pytest.raises(ValueError, match="no special tokens to pool"):
            pool(x, Sequence(7), "special")

    def test_the_first_special_token_is_that_of_the_class(self) -> None:
        x = torch.arange(11.0)[:, None].expand(11, DIM)
        packed = Sequence.packed([2, 3], special=3)
        assert pool(x, packed, "class")[:, 0].tolist() == [0, 5]
        assert pool(x, packed, "special")[:, 0].tolist() == [1, 6]
        some = torch.tensor([1, 0, 3, 5, 6, 9])  # kept in any order
        assert pool(x[some], packed.keep(some), "class")[:, 0].tolist() == [0, 5]
        batch = x[None].expand(2, -1, -1)
        for space in (Grid(2, 4, special=3), Sequence.padded([8, 5], special=3)):
            assert pool(batch, space, "class")[:, 0].tolist() == [0, 0]
        without = torch.tensor([1, 3, 5, 6])  # the first sample's is dropped
        assert pool(x[without], packed.keep(without), "class")[:, 0].tolist() == [0, 5]
        with pytest.raises(ValueError, match="no special tokens to pool"):
            pool(x, Grid(1, 11), "class")

    def test_the_class_of_a_text_is_its_first_token(self) -> None:
        x = torch.arange(11.0)[:, None].expand(11, DIM)
        assert pool(x, Sequence(11), "class")[:, 0].tolist() == [0]
        assert pool(x, Sequence.packed([2, 8, 1]), "class")[:, 0].tolist() == [0, 2, 10]
        batch = x[None].expand(2, -1, -1)
        for side, wanted in (("right", [0, 0]), ("left", [3, 6])):
            space = Sequence.padded([8, 5], 11, side=side)
            assert pool(batch, space, "class")[:, 0].tolist() == wanted
        for space in (Sequence.packed([11, 0]), Sequence.padded([11, 0])):
            with pytest.raises(ValueError, match="sample 1 has length 0"):
                pool(x if space.segments is not None else batch, space, "class")

    @pytest.mark.parametrize("activation", ["gelu", "gelu-tanh"])
    def test_attention_pool_with_a_network_is_siglips(self, activation: str) -> None:
        act = partial(nn.GELU, approximate="tanh" if activation == "gelu-tanh" else "none")
        norm = partial(nn.LayerNorm, eps=1e-5)
        theirs = AttentionPoolLatent(DIM, num_heads=HEADS, norm_layer=norm, act_layer=act)
        ours = AttentionPool(DIM, HEADS, hidden=4 * DIM, activation=activation, eps=1e-5)  # type: ignore[arg-type]
        for parameter in theirs.parameters():
            nn.init.normal_(parameter, std=0.5)
        ours.queries.data = theirs.latent.data[0]
        for mine, other in (
            (ours.attention.query, theirs.q),
            (ours.attention.key_value, theirs.kv),
            (ours.attention.out, theirs.proj),
            (ours.feed_forward_residual.norm, theirs.norm),
            (ours.feed_forward.up, theirs.mlp.fc1),
            (ours.feed_forward.down, theirs.mlp.fc2),
        ):
            mine.load_state_dict(other.state_dict())
        samples = [torch.randn(n, DIM) for n in (3, 5)]
        expected = torch.cat([theirs(sample[None]) for sample in samples])
        packed = ours(torch.cat(samples), Sequence.packed([3, 5]))
        torch.testing.assert_close(packed, expected)
        rows = nn.utils.rnn.pad_sequence(samples, batch_first=True)
        torch.testing.assert_close(ours(rows, Sequence.padded([3, 5])), expected)

    def test_an_empty_sample_gives_zeros(self) -> None:
        space = Sequence.packed([2, 0, 1])
        for how in ("mean", "sum", "max"):
            assert pool(torch.randn(3, DIM), space, how)[1].eq(0).all()

    def test_attention_pool_gives_zeros_for_an_empty_sample(self) -> None:
        layer = AttentionPool(DIM, HEADS)
        nn.init.ones_(layer.attention.out.bias)
        packed = layer(torch.randn(3, DIM), Sequence.packed([2, 0, 1]))
        assert packed[1].eq(0).all() and packed[0].ne(0).any()
        assert layer(torch.randn(2, 3, DIM), Sequence.padded([3, 0]))[1].eq(0).all()

    def test_attention_pool_is_the_same_packed_padded_and_alone(self) -> None:
        layer = AttentionPool(DIM, HEADS, queries=2)
        lengths = [3, 5]
        samples = [torch.randn(n, DIM) for n in lengths]
        packed = layer(torch.cat(samples), Sequence.packed(lengths))
        padded = layer(
            nn.utils.rnn.pad_sequence(samples, batch_first=True), Sequence.padded(lengths)
        )
        alone = torch.cat([layer(sample[None]) for sample in samples])
        assert packed.shape == (2, 2, DIM)
        torch.testing.assert_close(packed, alone)
        torch.testing.assert_close(padded, alone)


def test_decoder_is_causal_and_crosses() -> None:
    decoder = Decoder(DIM, 2, HEADS, cross=True, context_dim=8, rotary=Rotary()).eval()
    x, context = torch.randn(1, 5, DIM), torch.randn(1, 4, 8)
    y = decoder(x, context=context)
    changed = x.clone()
    changed[:, 3:] += 1
    torch.testing.assert_close(decoder(changed, context=context)[:, :3], y[:, :3])
    assert not torch.allclose(decoder(x, context=context + 1), y)
    space = Sequence.padded([2], length=4)
    torch.testing.assert_close(
        decoder(x, context=context, context_space=space), decoder(x, context=context[:, :2])
    )
    with pytest.raises(ValueError, match="needs a context"):
        decoder(x)
    with pytest.raises(ValueError, match="cross=True"):
        Decoder(DIM, 2, HEADS)(x, context=context)
