"""Every parameter of a model gets a gradient from every batch: DDP, whose processes wait for each
other's gradients, stops at the step after one that left a parameter without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attention_core import Edges, Neighborhood
from graph import GATConv, GraphAttention, GraphTransformer, HeteroGraphAttention
from graph.encodings import PathBias, RandomWalkBias
from nlp import MaskedLanguageModel, Seq2SeqTransformer, TextDecoder, TextEncoder
from vision import MaskedAutoencoder, NeighborhoodTransformer, SwinTransformer, VisionTransformer

Batches = dict[str, tuple[Any, ...]]


def graphs(kind: str = "types") -> Batches:
    none, no_type = torch.empty(2, 0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    edges = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 0, 4, 3, 3]])
    several = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    types = torch.arange(9) % 7
    return {
        "several": (types, edges, edges[0] % 4, several, 3),
        "no edges": (types[:3], none, no_type, torch.tensor([0, 1, 2]), 3),
        "one node": (types[:1], none, no_type),
        "no nodes": (no_type, none, no_type, no_type, 2),
        "no graphs": (no_type, none, no_type, no_type, 0),
    }


def of_graph(**options: Any) -> tuple[nn.Module, Batches]:
    blocks = {"dim": 16, "depth": 2, "heads": 4, "node_types": 7, "edge_types": 4, "num_classes": 3}
    return GraphTransformer(**{**blocks, **options}), graphs()


IDS, LENGTHS = torch.arange(7), torch.tensor([3, 4])
TEXTS: Batches = {
    "several": (IDS, LENGTHS),
    "one token": (IDS[:1], LENGTHS[:1] // 3),
    "empty texts": (IDS[:0], LENGTHS * 0),
    "no texts": (IDS[:0], LENGTHS[:0]),
}
IMAGES: Batches = {
    "several": (torch.randn(2, 3, 16, 16),),
    "none": (torch.randn(0, 3, 16, 16),),
}


def of_images(cls: Any = VisionTransformer, **options: Any) -> tuple[nn.Module, Batches]:
    blocks = {
        "dim": 16,
        "depth": 2,
        "heads": 2,
        "patch_size": 4,
        "num_classes": 3,
        "image_size": 16,
    }
    return cls(**{**blocks, **options}), IMAGES


def of_texts(cls: Any, **options: Any) -> tuple[nn.Module, Batches]:
    return cls(**{"vocab_size": 20, "dim": 16, "depth": 2, "heads": 2, **options}), TEXTS


MADE: dict[str, Callable[[], tuple[nn.Module, Batches]]] = {
    "graph": lambda: of_graph(),
    "GAT": lambda: of_graph(mask=Edges(), score="additive", edge_dim=8),
    "GATv2, nodes": lambda: of_graph(mask=Edges(), score="additive_v2", level="node"),
    "Graphormer": lambda: of_graph(
        max_degree=4, max_hops=3, virtual_nodes=1, pooling="special",
        biases=[PathBias(4, 2, types=4)],
    ),
    "GPS": lambda: of_graph(local=Edges(), walk_steps=4, edge_dim=8, pooling="attention"),
    "GRIT": lambda: of_graph(
        walk_steps=4, degree_scaler=True, biases=[RandomWalkBias(4, 5, hidden=8)]
    ),
    "Exphormer": lambda: of_graph(
        mask=Edges(), expander_degree=4, virtual_nodes=1, edge_dim=8, pooling="max"
    ),
    "edges": lambda: of_graph(level="edge", edge_dim=4, eigenvectors=2),
    "within hops": lambda: of_graph(mask=[Neighborhood(2), None], max_hops=2, level="edge"),
    "ViT": lambda: of_images(),
    "ViT, mean": lambda: of_images(pooling="mean", layer_scale=0.1, drop_path=0.9),
    "ViT, map": lambda: of_images(pooling="map", registers=2, positions="rotary"),
    "Swin": lambda: (
        SwinTransformer(8, (2, 2), (1, 2), window=2, patch_size=4, num_classes=3),
        IMAGES,
    ),
    "Swin v2": lambda: (
        SwinTransformer(8, (2, 2), (1, 2), window=2, patch_size=4, num_classes=3, version=2), IMAGES
    ),
    "neighborhoods": lambda: of_images(NeighborhoodTransformer, radius=1),
    "text": lambda: of_texts(
        TextEncoder, num_classes=3, num_token_types=2, embedding_dim=8, pooler="tanh"
    ),
    "text, T5": lambda: of_texts(TextEncoder, num_classes=3, positions="t5", pooling="attention"),
    "masked": lambda: of_texts(MaskedLanguageModel, positions="learned"),
    "decoder": lambda: of_texts(TextDecoder, tied=False, window=2, kv_heads=1, scores_bias=True),
}  # fmt: skip


def unlearned(model: nn.Module, output: Tensor) -> list[str]:
    for parameter in model.parameters():
        parameter.grad = None
    output.square().sum().backward()
    named = dict(model.named_parameters())
    return [name for name, p in named.items() if p.grad is None or not p.numel()]


@pytest.mark.parametrize("name", MADE)
def test_every_parameter_of_a_model_learns_from_every_batch(name: str) -> None:
    model, batches = MADE[name]()
    for what, batch in batches.items():
        assert not unlearned(model, model(*batch)), what


def test_of_two_texts_and_of_hidden_patches() -> None:
    texts = Seq2SeqTransformer(20, 16, 2, 2, positions="t5")
    assert not unlearned(texts, texts(IDS, LENGTHS, IDS, LENGTHS))
    vit = VisionTransformer(16, 2, 2, patch_size=4, num_classes=None, image_size=16, pooling="mean")
    images = MaskedAutoencoder(vit, dim=8, depth=1, heads=2)
    assert not unlearned(images, images.loss(IMAGES["several"][0], images(*IMAGES["several"])))


# -- layers of graphs ----------------------------------------------------------------------------

WRITES, CITES, RATES = ("author", "writes", "paper"), ("paper", "cites", "paper"), ("a", "b", "c")


def typed() -> HeteroGraphAttention:
    kinds = ["author", "paper", "a", "c"], [WRITES, CITES, RATES]
    return HeteroGraphAttention(8, 8, 2, kinds, edge_dim={WRITES: 3, RATES: 2})


PAPERS = {"author": torch.randn(3, 8), "paper": torch.randn(4, 8)}
LINKS = torch.tensor([[0, 1, 2], [3, 0, 0]])


@pytest.mark.parametrize(
    ("x", "edges"),
    [
        (PAPERS, {WRITES: LINKS, CITES: LINKS}),
        (PAPERS, {WRITES: LINKS}),
        (PAPERS, {CITES: LINKS[:, :0]}),
        ({"paper": PAPERS["paper"]}, {CITES: LINKS}),
        ({"paper": PAPERS["paper"][:0]}, {}),
        ({}, {}),
    ],
)
def test_types_that_a_batch_lacks(x: dict[str, Tensor], edges: dict[Any, Tensor]) -> None:
    layer = typed()
    attr = {WRITES: torch.randn(3, 3)} if WRITES in edges else {}
    out = layer(x, edges, attr)
    assert out.keys() == x.keys() & {"paper"}
    total = sum((nodes.sum() for nodes in out.values()), layer.key_relation.sum() * 0)
    if out:
        assert not unlearned(layer, total)


@pytest.mark.parametrize("nodes", [5, 0])
@pytest.mark.parametrize("score", ["dot", "additive", "additive_v2"])
def test_layers_without_edges(score: Any, nodes: int) -> None:
    layer = GraphAttention(8, 2, score=score, edge_dim=3, residual=True)
    empty = torch.empty(2, 0, dtype=torch.long)
    assert not unlearned(layer, layer(torch.randn(nodes, 8), empty, torch.empty(0, 3)))


# -- DDP -----------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_steps_under_ddp(alone: None) -> None:
    typed_batches = [
        (PAPERS, {WRITES: LINKS, CITES: LINKS}, {WRITES: torch.randn(3, 3)}),
        ({"paper": PAPERS["paper"]}, {CITES: LINKS}),
    ] * 2
    x, edge_index = torch.randn(6, 8), torch.tensor([[0, 1, 2], [1, 0, 5]])
    cases: list[tuple[nn.Module, list[Any]]] = [
        (MADE["GPS"]()[0], list(graphs().values())),
        (of_images(pooling="mean")[0], [IMAGES["several"]] * 2),
        (typed(), typed_batches),
        (GATConv(8, 4, add_self_loops=False), [(x, edge_index), (x, edge_index[:, :0])] * 2),
    ]
    for model, batches in cases:
        wrapped = DistributedDataParallel(copy.deepcopy(model))
        for batch in batches:
            out = wrapped(*batch)
            (out if isinstance(out, Tensor) else out["paper"]).sum().backward()
