"""What must hold of an encoder-decoder: packed, padded and alone are the same."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from nlp import Seq2SeqTransformer, pad, unpad
from nlp.embeddings import Positions

SOURCES, TARGETS = [5, 1, 12, 7], [3, 9, 1, 7]


def build(**options: Any) -> Seq2SeqTransformer:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"decoder_depth": 1, **options}
    return Seq2SeqTransformer(50, 16, 2, 4, **settings).double().eval()


def packed(lengths: list[int], seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 50, (sum(lengths),), generator=draw), torch.tensor(lengths)


@pytest.mark.parametrize("positions", [*get_args(Positions), None])
def test_packed_padded_and_alone_are_the_same(positions: Any) -> None:
    model = build(positions=positions)
    ids, lengths = packed(SOURCES, 1)
    target_ids, target_lengths = packed(TARGETS, 2)
    together = model(ids, lengths, target_ids, target_lengths)
    assert together.shape == (sum(TARGETS), 50)
    for side, target_side in (("right", "right"), ("left", "right"), ("right", "left")):
        padded = model(
            pad(ids, lengths, 49, side=side),
            lengths,
            pad(target_ids, target_lengths, 48, side=target_side),
            target_lengths,
            side=side,
            target_side=target_side,
        )
        torch.testing.assert_close(unpad(padded, target_lengths, side=target_side), together)
    pairs = zip(ids.split(SOURCES), target_ids.split(TARGETS), strict=True)
    alone = torch.cat([model(source, None, target) for source, target in pairs])
    torch.testing.assert_close(alone, together)


def test_it_is_torch_s_transformer_but_for_embeddings() -> None:
    """The same weights in `nn.Transformer`, which is the paper's with norms where we put them."""
    torch.manual_seed(0)
    ours = Seq2SeqTransformer(
        50, 16, 2, 4, norm_order="post", activation="relu", hidden=32, eps=1e-5
    )
    ours = ours.double().eval()
    theirs = torch.nn.Transformer(16, 4, 2, 2, 32, 0.0, batch_first=True, dtype=torch.float64)
    theirs.encoder.norm = theirs.decoder.norm = None  # type: ignore[assignment]
    for mine, stack in ((ours.encoder, theirs.encoder), (ours.decoder, theirs.decoder)):
        for block, layer in zip(mine.blocks, stack.layers, strict=True):
            attentions = [(block.attention, layer.self_attn, block.attention_residual)]
            if block.cross_attention is not None:
                residual = block.cross_attention_residual
                attentions.append((block.cross_attention, layer.multihead_attn, residual))
            norms = [layer.norm1, layer.norm2]
            for (attention, other, residual), norm in zip(attentions, norms, strict=False):
                joint = torch.cat([attention.query.weight, attention.key_value.weight])
                other.in_proj_weight.data.copy_(joint)
                other.out_proj.weight.data.copy_(attention.out.weight)
                norm.load_state_dict(residual.norm.state_dict())
            layer.linear1.load_state_dict(block.feed_forward.up.state_dict())
            layer.linear2.load_state_dict(block.feed_forward.down.state_dict())
    ids, targets = (packed([n], n)[0] for n in (9, 6))
    embedded = []
    for text in (ids, targets):
        place, step = torch.arange(len(text))[:, None], torch.arange(0, 16, 2) / 16
        angle = place / 10000**step
        waves = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
        embedded.append((ours.embedding.table.weight[text] * 16**0.5 + waves)[None])
    causal = torch.nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.eval()(*embedded, tgt_mask=causal)[0] @ ours.embedding.table.weight.T
        torch.testing.assert_close(ours(ids, None, targets), expected, atol=1e-5, rtol=1e-5)


def test_source_target_and_scores_share_one_table() -> None:
    model = build()
    tables = [name for name, p in model.named_parameters() if p.shape == (50, 16)]
    assert tables == ["embedding.table.weight"]
    assert build(tied=False).state_dict()["head.weight"].shape == (50, 16)


def test_bad_input_is_named() -> None:
    model = build(positions="learned", max_length=8)
    ids, lengths = torch.arange(5), torch.tensor([2, 3])
    with pytest.raises(ValueError, match="there are 2 sources, but 1 targets"):
        model(ids, lengths, ids, None)
    with pytest.raises(ValueError, match=r"both be packed .* got \(5,\) and \(1, 5\)"):
        model(ids, None, ids[None], None)
    with pytest.raises(ValueError, match="need 9 positions: the model has 8"):
        model.generate(ids, lengths, start=1, max_tokens=9)
    with pytest.raises(ValueError, match=r"learned for places up to \(8,\)"):
        model.generate(torch.zeros(9).long(), start=1, max_tokens=2)
