"""Models that pass options on: each works, or is refused in words that name it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from attention_core import (
    ALiBi,
    AttentionPool,
    Block,
    Causal,
    Decoder,
    Edges,
    Encoder,
    FeedForward,
    MultiheadAttention,
    Neighborhood,
    RelativeTable,
)
from attention_core.layers.residual import Residual
from graph import GraphTransformer
from graph.encoder import GraphEncoder, SelfAttention
from nlp import MaskedLanguageModel, Seq2SeqTransformer, TextDecoder, TextEncoder
from vision import (
    DistilledVisionTransformer,
    NeighborhoodTransformer,
    SwinTransformer,
    VisionTransformer,
)
from vision.swin import SwinStage

VIT: dict[str, Any] = {"patch_size": 4, "num_classes": 2, "image_size": 8}
GRAPHS: dict[str, Any] = {"num_classes": 2, "node_features": 3}
MODELS: dict[str, Callable[..., nn.Module]] = {
    "Encoder": partial(Encoder, 8, 1, 2),
    "Decoder": partial(Decoder, 8, 1, 2),
    "Block": partial(Block, 8, 2),
    "AttentionPool": partial(AttentionPool, 8, 2),
    "VisionTransformer": partial(VisionTransformer, 8, 1, 2, **VIT),
    "NeighborhoodTransformer": partial(NeighborhoodTransformer, 8, 1, 2, radius=1, **VIT),
    "DistilledVisionTransformer": partial(DistilledVisionTransformer, 8, 1, 2, **VIT),
    "SwinTransformer": partial(SwinTransformer, 8, (1,), (2,), window=2, num_classes=2),
    "SwinStage": partial(SwinStage, 8, 1, 2, window=2),
    "GraphTransformer": partial(GraphTransformer, 8, 1, 2, **GRAPHS),
    "GraphTransformer+local": partial(
        GraphTransformer, 8, 1, 2, local=Edges(), edge_types=2, max_hops=2, **GRAPHS
    ),
    "SelfAttention+local": partial(SelfAttention, 8, 2, local=Edges()),
    "TextEncoder": partial(TextEncoder, 20, 8, 1, 2, num_classes=2),
    "MaskedLanguageModel": partial(MaskedLanguageModel, 20, 8, 1, 2),
    "TextDecoder": partial(TextDecoder, 20, 8, 1, 2),
    "Seq2SeqTransformer": partial(Seq2SeqTransformer, 20, 8, 1, 2),
}
#: Every option that any layer has, and what is given for it.
OPTIONS = sorted(
    {
        name
        for layer in (
            Encoder, Block, MultiheadAttention, FeedForward, Residual, AttentionPool,
            GraphEncoder, SelfAttention, SwinStage,
        )
        for name in inspect.signature(layer.__init__).parameters
    }
    - {"self", "dim", "depth", "heads", "arguments", "options", "block", "attention"}
)  # fmt: skip
VALUES: dict[str, Any] = {
    "mask": Neighborhood(1), "bias": ALiBi(2), "head_dim": 4, "norm_order": "post", "eps": 1e-5,
    "activation": "relu", "version": 1, "qk_norm": True,
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_no_option_is_passed_on_twice(model: str) -> None:
    """What a model sets itself is refused by name, not by Python in the words of an inner layer."""
    for option in OPTIONS:
        for value in (VALUES.get(option), 1):
            try:
                MODELS[model](**{option: value})
            except Exception as error:  # of the value, or of a name that no layer has
                assert "multiple values" not in str(error), option


REFUSED: dict[str, tuple[str, Callable[[], object], str]] = {
    "Swin's masks": ("mask=", lambda: MODELS["SwinTransformer"](mask=Causal()), "window"),
    "Swin's biases": ("bias=", lambda: MODELS["SwinTransformer"](bias=ALiBi(2)), "table"),
    "a decoder without context": ("cross=", lambda: MODELS["TextDecoder"](cross=True), "Seq2Seq"),
    "a context of its own": ("cross=", lambda: MODELS["Seq2SeqTransformer"](cross=False), "source"),
    "a patch twice": ("channels=", lambda: MODELS["VisionTransformer"](
        embedding={"channels": 1}), "beside embedding="),
    "a bias of edges": ("edge_bias=", lambda: MODELS["GraphTransformer"](
        edge_bias={"types": 2}), "edge_types"),
    "two masks": ("window or mask", lambda: MODELS["TextDecoder"](
        window=2, mask=Neighborhood(1)), "not both"),
    "an encoder with context": ("cross=", lambda: MODELS["Encoder"](cross=True), "Decoder"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_model_sets_itself_is_refused_by_name(name: str) -> None:
    option, call, words = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=f"{option}.*{words}"):
        call()


def test_a_mask_of_a_text_decoder() -> None:
    """The same as its window, which is a mask."""
    outputs = []
    for options in ({"window": [None, 2]}, {"mask": [None, Neighborhood(2)]}):
        torch.manual_seed(0)
        model = TextDecoder(20, 8, 2, 2, **options)
        outputs.append(model(torch.arange(9)))
    assert torch.equal(*outputs)
    assert not torch.equal(outputs[0], TextDecoder(20, 8, 2, 2)(torch.arange(9)))


@pytest.mark.parametrize("biases", [{}, {"max_hops": 2}], ids=["alone", "beside others"])
def test_a_bias_of_a_graph_transformer(biases: dict[str, Any]) -> None:
    """One for all layers, or one each; added to what the model makes itself."""
    x, edge_index = torch.randn(5, 3), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    outputs = []
    for bias in (None, RelativeTable.hops(2, 2), [RelativeTable.hops(2, 2) for _ in range(2)]):
        torch.manual_seed(0)
        model = GraphTransformer(8, 2, 2, bias=bias, **biases, **GRAPHS)
        if bias is not None:
            for one in bias if isinstance(bias, list) else [bias]:
                nn.init.constant_(one.table, 0.0)
                with torch.no_grad():
                    one.table[1] = 2.0
        outputs.append(model(x, edge_index))
    assert not torch.allclose(outputs[0], outputs[1])
    torch.testing.assert_close(outputs[1], outputs[2])


#: Sizes that each model names, which must be whole numbers of at least 1.
SIZES = {
    "VisionTransformer": ["dim", "depth", "heads", "num_classes", "channels", "hidden", "kv_heads"],
    "SwinTransformer": ["dim", "num_classes", "channels", "hidden"],
    "GraphTransformer": [
        "dim", "depth", "heads", "num_classes", "node_features", "edge_types", "edge_features",
        "max_hops", "hidden", "expander_degree",
    ],
    "TextEncoder": ["vocab_size", "dim", "depth", "heads", "num_classes", "max_length", "hidden"],
    "TextDecoder": ["vocab_size", "dim", "depth", "heads", "max_length", "hidden"],
    "Seq2SeqTransformer": ["vocab_size", "dim", "depth", "heads", "decoder_depth", "hidden"],
}  # fmt: skip
GIVEN: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "VisionTransformer": (VisionTransformer, {"dim": 8, "depth": 1, "heads": 2, **VIT}),
    "SwinTransformer": (
        SwinTransformer, {"dim": 8, "depths": (1,), "heads": (2,), "window": 2, "num_classes": 2}
    ),
    "GraphTransformer": (GraphTransformer, {"dim": 8, "depth": 1, "heads": 2, **GRAPHS}),
    "TextEncoder": (
        TextEncoder, {"vocab_size": 9, "dim": 8, "depth": 1, "heads": 2, "num_classes": 2}
    ),
    "TextDecoder": (TextDecoder, {"vocab_size": 9, "dim": 8, "depth": 1, "heads": 2}),
    "Seq2SeqTransformer": (Seq2SeqTransformer, {"vocab_size": 9, "dim": 8, "depth": 1, "heads": 2}),
}  # fmt: skip


@pytest.mark.parametrize(("model", "size"), [(m, s) for m, sizes in SIZES.items() for s in sizes])
def test_a_size_of_nothing_is_refused_by_name(model: str, size: str) -> None:
    """0, a negative number and half a one: before any weight is made of it."""
    build, given = GIVEN[model]
    name = {"node_features": "features", "edge_types": "types", "edge_features": "features",
            "decoder_depth": "depth"}.get(size, size)  # fmt: skip
    for value in (0, -2, 1.5):
        with pytest.raises(ValueError, match=f"({size}|{name})[ =].*{value}"):
            build(**{**given, size: value})


def test_an_argument_by_place_is_no_option_by_name() -> None:
    """What comes by place beyond those that do is counted, not taken for the next of the names."""
    x, edge_index = torch.tensor([1, 2]), torch.tensor([[0], [1]])
    model = GraphTransformer(16, 1, 2, node_types=3, num_classes=2)
    with pytest.raises(TypeError, match="positional argument"):
        model.embed(x, edge_index, None, None, 1, "reference")  # type: ignore[misc]
