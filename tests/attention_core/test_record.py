"""Recorded attention weights are exact, and recording changes nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attention_core import (
    Encoder,
    Graph,
    Neighborhood,
    PairWeights,
    RelativeTable,
    Sequence,
    record_attention,
)

DIM, HEADS = 16, 4


def test_weights_reproduce_the_output_of_the_fused_path() -> None:
    torch.manual_seed(0)
    encoder = Encoder(DIM, 3, HEADS, bias=RelativeTable.t5(HEADS), mask=Neighborhood(2)).eval()
    x = torch.randn(2, 6, DIM)
    inputs = []
    attention = encoder.blocks[-1].attention
    attention.register_forward_hook(lambda module, args, out: inputs.append((args[0], out)))
    plain = encoder(x)
    with record_attention(encoder, layers=[-1]) as maps:
        recorded = encoder(x)
    assert torch.equal(recorded, plain)
    assert maps[-1].shape == (2, HEADS, 6, 6) and not maps[-1].requires_grad
    tokens, out = inputs[-1]
    values = attention.key_value(tokens).chunk(2, -1)[1].unflatten(-1, (HEADS, -1)).transpose(1, 2)
    torch.testing.assert_close(attention.out((maps[-1] @ values).transpose(1, 2).flatten(2)), out)


def test_all_layers_by_default_in_the_models_order() -> None:
    encoder = Encoder(DIM, 3, HEADS)
    with record_attention(encoder) as maps:
        encoder(torch.randn(1, 4, DIM))
    assert len(maps) == 3 and maps.names[0] == "blocks.0.attention"
    for weights in maps:
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, HEADS, 4))


def test_training_goes_on_while_recording() -> None:
    encoder = Encoder(DIM, 2, HEADS, attention_dropout=0.5)
    with record_attention(encoder, layers=[0]) as maps:
        encoder(torch.randn(1, 4, DIM)).sum().backward()
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(1, HEADS, 4))  # before dropout
    assert encoder.blocks[0].attention.query.weight.grad is not None


def test_padding_and_graphs() -> None:
    encoder = Encoder(DIM, 1, HEADS)
    with record_attention(encoder) as maps:
        encoder(torch.randn(2, 4, DIM), Sequence.padded([4, 2]))
        assert maps.spaces(0)[1].valid is not None
        assert maps[0][1, :, 2:].eq(0).all() and maps[0][1, :, :, 2:].eq(0).all()
        encoder(torch.randn(3, DIM), Graph(torch.tensor([[0], [1]]), 3), mask=Neighborhood(1))
    assert maps[0].shape == (1, HEADS, 3, 3) and maps[0][0, 0, 2].tolist() == [0, 0, 1]
    assert all(isinstance(space, Graph) for space in maps.spaces(0))


def test_pairs_instead_of_a_table_of_all() -> None:
    encoder = Encoder(DIM, 2, HEADS, mask=Neighborhood(1))
    x, space = torch.randn(5, DIM), Graph(torch.tensor([[0, 1, 3], [1, 2, 2]]), 5)
    with record_attention(encoder) as whole:
        plain = encoder(x, space)
    with record_attention(encoder, pairs=True) as maps:
        assert torch.equal(encoder(x, space), plain)
    for pairs, table in zip(maps, whole, strict=True):
        assert isinstance(pairs, PairWeights) and not pairs.values.requires_grad
        assert pairs.values.shape == (5 + 3, HEADS)
        torch.testing.assert_close(pairs.dense(), table)
        torch.testing.assert_close(pairs.of_edges()[0, 2], table[0, :, 2, 3])


def test_each_records_its_own_inside_of_another() -> None:
    encoder, x = Encoder(DIM, 2, HEADS), torch.randn(2, 4, DIM)
    with record_attention(encoder) as alone:
        encoder(x)
    with (
        record_attention(encoder) as outer,
        record_attention(encoder, layers=[1], pairs=True) as pairs,
        record_attention(Encoder(DIM, 1, HEADS)) as other,
    ):
        encoder(x)
    for layer in range(2):
        torch.testing.assert_close(outer[layer], alone[layer])
    torch.testing.assert_close(pairs[0].dense(), alone[1])
    with pytest.raises(LookupError, match="has not run"):
        other[0]


def test_errors() -> None:
    encoder = Encoder(DIM, 2, HEADS)
    with (
        pytest.raises(ValueError, match="has 2 attention layers, there is no layer 2"),
        record_attention(encoder, layers=[2]),
    ):
        pass
    with record_attention(encoder) as maps, pytest.raises(LookupError, match="has not run"):
        maps[0]
    with pytest.raises(LookupError, match="has not run"):
        maps.spaces(0)


@pytest.mark.parametrize("layers", [[-1], [0], [0, 2], None])
@pytest.mark.parametrize("whole", [True, False], ids=["model", "blocks"])
def test_compiled_models_are_recorded_as_they_are(whole: bool, layers: list[int] | None) -> None:
    """Compiled blocks share one program, which would not know whose weights are asked for."""
    torch.manual_seed(0)
    model, x = Encoder(16, 3, 2).eval(), torch.randn(2, 9, 16)
    with torch.no_grad():
        with record_attention(model, layers=layers) as wanted:
            model(x)
        run: Any = model
        if whole:
            run = torch.compile(model, backend="eager")
        else:
            for block in model.blocks:
                block.compile(backend="eager")
        before = run(x)
        with record_attention(model, layers=layers) as found, record_attention(model) as every:
            torch.testing.assert_close(run(x), before)
        assert len(every) == 3
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
        assert torch._dynamo.eval_frame._stance.stance == "default"
