"""Odd arguments of public functions: a result that `reference` gives, too, or a named error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch_geometric.data import Data

import attention_core
from attention_core import (
    Additive,
    AdditiveV2,
    ALiBi,
    AttentionPool,
    Block,
    Causal,
    ContinuousBias,
    Decoder,
    DenseBias,
    DenseMask,
    Dilated,
    EdgeBias,
    EdgeProjection,
    Edges,
    Encoder,
    FeedForward,
    GlobalTokens,
    Graph,
    Grid,
    KVCache,
    LearnedPosition,
    LinearScaling,
    Llama3Scaling,
    Mask,
    MultiheadAttention,
    Multiplier,
    Nearest,
    Neighborhood,
    NTKScaling,
    Points,
    Pool,
    PrefixLM,
    RelativeTable,
    Rotary,
    ScalableSoftmax,
    Sequence,
    Sinusoidal,
    Space,
    Window,
    YaRN,
    attend,
    explain,
    plan,
    pool,
    record_attention,
)
from tests.conformance.cases import BACKENDS
from tests.fuzz import HEADS, ODD, TOKENS, Call, call, faults, is_named, left_out

ATTEND: dict[str, Any] = {
    "q": HEADS,
    "k": HEADS,
    "v": HEADS,
    "space": None,
    "mask": None,
    "bias": None,
    "score": None,
    "scale": None,
    "softcap": None,
    "sink": None,
    "edge_key": None,
    "edge_value": None,
    "dropout_p": 0.0,
    "return_weights": False,
    "return_lse": False,
    "plan": None,
}
PLAN = {"space": Sequence(3), "mask": None, "bias": None, "score": None, "heads": 2}
LAYER: dict[str, Any] = {
    "dim": 8,
    "heads": 2,
    "kv_heads": None,
    "head_dim": None,
    "context_dim": None,
    "edge_dim": None,
    "rotary": None,
    "score": None,
    "bias": None,
    "scale": None,
    "qk_norm": False,
    "gate": False,
    "sink": False,
    "softcap": None,
    "attention_dropout": 0.0,
}
LINE = Sequence(3)
EDGE = torch.tensor([[0, 1], [1, 2]])
GRAPH = Graph(EDGE, 3)
CLOUD = torch.rand(3, 2)
MODEL = Encoder(8, 1, 2)
DECODER = Decoder(8, 1, 2, cross=True)
CACHE = KVCache()
BLOCK = {"dim": 8, "heads": 2, "hidden": None, "dropout": 0.0, "drop_path": 0.0}
STACK = {
    "dim": 8,
    "depth": 1,
    "heads": 2,
    "mask": None,
    "bias": None,
    "rotary": None,
    "num_groups": None,
    "drop_path": 0.0,
    "final_norm": None,
}
OF_BLOCK = {
    "norm_order": "pre",
    "norm": "layer",
    "eps": 1e-6,
    "layer_scale": None,
    "activation": "gelu",
    "feed_forward_norm": False,
    "attention_dropout": 0.0,
}
CROSS = {"cross": False, "context_dim": None}


def _recorded(model: Any, layers: Any, pairs: Any) -> None:
    with record_attention(model, layers, pairs=pairs):
        pass


def _extended(space: Space) -> Space:
    return KVCache().extend(space)


def _dense_bias(bias: Tensor) -> DenseBias:
    return DenseBias(bias)


def _dense_mask(mask: Tensor) -> DenseMask:
    return DenseMask(mask)


def _global_tokens(position: int | tuple[int, ...]) -> GlobalTokens:
    return GlobalTokens(position)


def _projected(attr: Tensor, weight: Tensor) -> Any:
    tokens = torch.ones(3, 1, 2, 3, 4)
    return attend(*tokens, space=GRAPH, mask=Edges(), edge_key=EdgeProjection(attr, weight))


def _grid(size: int, special: int = 0, wrap: bool | tuple[bool, ...] = False) -> Grid:
    return Grid(size, 2, special=special, wrap=wrap)


CALLS: dict[str, Call] = {
    "attend": call(attend, **ATTEND),
    "plan": call(plan, **PLAN, head_dim=4, batch=1, softcap=None, backend=None, grad=False,
                 weights=False, edge_features=False),
    "explain": call(explain, plan, **PLAN),
    "pool": call(pool, x=TOKENS, space=LINE, pooling="mean"),
    "record_attention": call(_recorded, record_attention, model=MODEL, layers=None, pairs=False),
    "MultiheadAttention": call(MultiheadAttention, **LAYER, projection_bias=True, key_bias=True),
    "Block": call(Block, MultiheadAttention, **BLOCK, **OF_BLOCK, **CROSS),
    "Encoder": call(Encoder, MultiheadAttention, Block, **STACK),
    "Decoder": call(Decoder, MultiheadAttention, Block, Encoder, **STACK, **CROSS),
    "FeedForward": call(FeedForward, dim=8, hidden=9, activation="gelu", dropout=0.0,
                        projection_bias=True, norm=None, eps=1e-6),
    "AttentionPool": call(AttentionPool, MultiheadAttention, dim=8, heads=2, queries=1,
                          hidden=None, activation="gelu", eps=1e-6),
    "Pool": call(Pool, pooling="mean"),
    "LearnedPosition": call(LearnedPosition, size=3, dim=8, special=0),
    "Sinusoidal": call(Sinusoidal, dim=8, axes=1, base=100.0, layout="interleaved", reverse=False),
    "Rotary": call(Rotary, axes=1, base=100.0, dim=None, layout="half", extent=None,
                   frequencies=None, scaling=None),
    "LinearScaling": call(LinearScaling, factor=2.0),
    "NTKScaling": call(NTKScaling, factor=2.0),
    "Llama3Scaling": call(Llama3Scaling, factor=2.0, length=8, low=1.0, high=4.0),
    "YaRN": call(YaRN, factor=2.0, length=8, fast=32.0, slow=1.0, gain=None, whole=True),
    "ALiBi": call(ALiBi, heads=2),
    "Additive": call(Additive, heads=2, head_dim=4, negative_slope=0.2, edge=False),
    "AdditiveV2": call(AdditiveV2, heads=2, head_dim=4, negative_slope=0.2),
    "ContinuousBias": call(ContinuousBias, heads=2, extent=(1.0,), hidden=4),
    "DenseBias": call(_dense_bias, bias=torch.zeros(3, 3)),
    "Multiplier": call(Multiplier, bias=ALiBi(2)),
    "ScalableSoftmax": call(ScalableSoftmax, heads=2, length=8, causal=False),
    "EdgeProjection": call(_projected, attr=torch.ones(2, 3), weight=torch.ones(2, 4, 3)),
    "EdgeBias": call(EdgeBias, heads=2, types=3),
    "RelativeTable": call(RelativeTable, heads=2, buckets=3, bucket=len, special=False),
    "RelativeTable.t5": call(RelativeTable.t5, heads=2, buckets=8, max_distance=16,
                             bidirectional=True, special=False),
    "RelativeTable.swin": call(RelativeTable.swin, heads=2, window=2, special=False),
    "RelativeTable.hops": call(RelativeTable.hops, heads=2, max_hops=2, special=False),
    "DenseMask": call(_dense_mask, mask=torch.ones(3, 3).bool()),
    "Causal": call(Causal, axes=None),
    "Dilated": call(Dilated, step=2, axes=None),
    "GlobalTokens": call(_global_tokens, position=0),
    "Neighborhood": call(Neighborhood, radius=1, border="shift", dilation=1, stride=1,
                         is_causal=False),
    "Nearest": call(Nearest, k=2, loop=True),
    "PrefixLM": call(PrefixLM, n=1),
    "Window": call(Window, size=2, shift=0),
    "Mask.from_torch_mha": call(Mask.from_torch_mha, attn_mask=torch.ones(3, 3).bool(),
                                key_padding_mask=None, heads=2),
    "Space": call(Space, length=3, coordinates=None, segments=None, valid=None, special=None,
                  num_segments=None, tokenwise=None, edge_index=EDGE, edge_attr=None,
                  pair_attr=None),
    "Sequence": call(Sequence, length=3, special=0, start=0),
    "Sequence.padded": call(Sequence.padded, lengths=[2, 3], length=3, side="right", special=0),
    "Sequence.packed": call(Sequence.packed, lengths=[2, 3], special=0),
    "Grid": call(_grid, size=2, special=0, wrap=False),
    "Grid.packed": call(Grid.packed, sizes=[(2, 2)], special=0, wrap=False),
    "Grid.padded": call(Grid.padded, sizes=[(2, 2)], special=0, wrap=False),
    "Points": call(Points, coordinates=CLOUD, segments=None, valid=None, special=0),
    "Graph": call(Graph, edge_index=EDGE, num_nodes=3, edge_attr=None, segments=None,
                  coordinates=None, special=0, num_graphs=None, pair_attr=None),
    "Graph.bipartite": call(Graph.bipartite, edge_index=EDGE, num_sources=3, num_targets=3,
                            edge_attr=None),
    "Graph.over": call(Graph.over, edges=GRAPH.edges),
    "Graph.from_pyg": call(Graph.from_pyg, data=Data(edge_index=EDGE, num_nodes=3), special=0,
                           pair_attr=(), coordinates=None),
    "Space.keep": call(LINE.keep, index=torch.tensor([0, 2])),
    "Space.append": call(LINE.append, other=LINE),
    "Space.pack": call(Space.pack, spaces=[Space(3)]),
    "Space.pad": call(Space.pad, spaces=[Space(3)]),
    "Space.with_edges": call(LINE.with_edges, edge_index=EDGE, edge_attr=None, pair_attr=None),
    "Space.with_tokenwise": call(LINE.with_tokenwise, tensors={"colour": torch.arange(3)}),
    "KVCache": call(KVCache, max_length=None, window=None),
    "KVCache.next_space": call(CACHE.next_space, length=1),
    "KVCache.extend": call(_extended, space=LINE),
    "KVCache.reorder": call(CACHE.reorder, index=torch.tensor([0])),
    "Decoder.new_cache": call(DECODER.new_cache, max_length=None),
    "MultiheadAttention()": call(MultiheadAttention(8, 2), x=TOKENS, context=None, space=None,
                                 mask=None, bias=None, cache=None, backend=None, plan=None),
    "Block()": call(Block(8, 2), x=TOKENS, context=None, plan=None, context_plan=None, bias=None,
                    cache=None),
    "Encoder()": call(MODEL, x=TOKENS, space=None, mask=None, keep=None, backend=None),
    "Encoder.intermediates": call(MODEL.intermediates, x=TOKENS, layers=[0], norm=True),
    "Decoder()": call(DECODER, x=TOKENS, context=TOKENS, space=None, context_space=None,
                      mask=None, cache=None, keep=None, backend=None),
    "FeedForward()": call(FeedForward(8), x=TOKENS),
    "AttentionPool()": call(AttentionPool(8, 2), x=TOKENS, space=None),
    "Pool()": call(Pool("mean"), x=TOKENS, space=LINE),
    "LearnedPosition()": call(LearnedPosition(3, 8), space=LINE),
    "Sinusoidal()": call(Sinusoidal(8), space=LINE),
    "Rotary()": call(Rotary(), x=HEADS, space=LINE),
}  # fmt: skip
#: What is public and yet not called with values of one's own.
EXEMPT = {
    # what the library makes, or is derived from
    **dict.fromkeys(["EncoderOptions", "Model", "Model()", "Model.preset"]),
    **dict.fromkeys(["AttentionMaps", "BackendError", "Bias", "Bias()", "Mask", "PairWeights"]),
    **dict.fromkeys(["Pairs", "Pairs.all", "Plan", "Score", "Score()", "ScoreMod", "ScoreMod()"]),
    "Edges": None,  # without an argument
    # asked by a plan, with pairs of its own
    **dict.fromkeys(["Additive()", "AdditiveV2()", "DenseBias()"]),
}


def test_no_public_callable_is_left_out() -> None:
    assert left_out(attention_core, CALLS, EXEMPT) == []


@pytest.mark.parametrize("name", CALLS)
def test_an_odd_argument_is_taken_or_named(name: str) -> None:
    found = faults(CALLS[name], ODD)
    assert not found, "\n".join(found)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(BACKENDS), st.data())
def test_odd_arguments_of_attend_give_what_reference_gives(backend: str, data: Any) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(ATTEND)), min_size=1, max_size=2))
    odd = {name: ODD[data.draw(st.integers(0, len(ODD) - 1))] for name in names}
    arguments = ATTEND | odd
    if arguments["plan"] is None:
        arguments["backend"] = backend
    try:
        found = attend(**arguments)
    except Exception as error:
        assert any(is_named(error, name) for name in names), f"{odd}: {error!r}"
        return
    if arguments["dropout_p"] or arguments["plan"] is not None:
        return
    wanted = attend(**arguments | {"backend": "reference"})
    found, wanted = (x if isinstance(x, tuple) else (x,) for x in (found, wanted))
    if arguments["return_weights"] != "pairs":
        torch.testing.assert_close(found, wanted, equal_nan=True, rtol=2e-3, atol=2e-3)
