"""Layers that bear PyG's names: equal to PyG's with the weights of PyG's, values and gradients."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric import EdgeIndex

from graph import GATConv, GATv2Conv, TransformerConv

IN, TARGET_IN, OUT, HEADS, F = 5, 7, 4, 3, 2
CONVS = {
    "GATConv": (GATConv, pyg.GATConv),
    "GATv2Conv": (GATv2Conv, pyg.GATv2Conv),
    "TransformerConv": (TransformerConv, pyg.TransformerConv),
}


def edges(sources: int = 12, targets: int | None = None, count: int = 50) -> Tensor:
    """With a hub (target 0), repeated edges, self-loops, one of them twice, and, as the last three
    targets, isolated nodes."""
    generator = torch.Generator().manual_seed(1)
    targets = sources if targets is None else targets
    source = torch.randint(sources, (count,), generator=generator)
    target = torch.randint(targets - 3, (count,), generator=generator)
    target[: count // 3] = 0
    more = torch.tensor([[1, 2, 2, 3, 3], [1, 2, 2, 1, 1]])
    return torch.cat([torch.stack([source, target]), more], 1)[:, torch.randperm(count + 5)]


def pair(name: str, channels: Any = IN, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Ours with the weights of PyG's."""
    torch.manual_seed(0)
    mine, theirs = (conv(channels, OUT, **{"heads": HEADS, **options}) for conv in CONVS[name])
    for parameter in theirs.parameters():  # PyG begins with zero biases
        nn.init.normal_(parameter, std=0.5)
    mine.load_state_dict(theirs.state_dict())
    return mine, theirs


def assert_equal_layers(
    mine: nn.Module, theirs: nn.Module, x: Any, edge_index: Tensor, edge_attr: Tensor | None
) -> None:
    """Output and the gradients of nodes, of features of edges and of every parameter."""
    results = []
    for layer in (mine, theirs):
        given = [t.clone().requires_grad_() for t in (x if isinstance(x, tuple) else (x,))]
        attr = None if edge_attr is None else edge_attr.clone().requires_grad_()
        out = layer(tuple(given) if isinstance(x, tuple) else given[0], edge_index, attr)
        generator = torch.Generator().manual_seed(3)
        (out * torch.randn(out.shape, generator=generator)).sum().backward()
        of_inputs = [t.grad for t in (*given, *(() if attr is None else (attr,)))]
        results.append((out, *of_inputs))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    own = {name: parameter.grad.clone() for name, parameter in mine.named_parameters()}
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in theirs.named_parameters(remove_duplicate=False)
    }
    mine.load_state_dict(gradients)  # PyG's gradients go where its parameters went
    for name, gradient in mine.named_parameters():
        torch.testing.assert_close(own[name], gradient.detach(), rtol=1e-5, atol=1e-5)


def choices(name: str) -> list[dict[str, Any]]:
    shared: dict[str, list[Any]] = {"concat": [True, False], "edge_dim": [None, F]}
    shared["bias"] = [True, False]
    if name == "TransformerConv":
        more: dict[str, list[Any]] = {"root_weight": [True, False], "beta": [False, True]}
    else:
        more = {"add_self_loops": [True, False], "residual": [False, True]}
    if name == "GATv2Conv":
        more["share_weights"] = [False, True]
    options = shared | more
    return [
        dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())
    ]


@pytest.mark.parametrize("bipartite", [False, True])
@pytest.mark.parametrize("name", CONVS)
def test_equal_to_pyg_with_its_weights(name: str, bipartite: bool) -> None:
    """Every combination of the options that are shared."""
    for options in choices(name):
        two = bipartite and not options.get("share_weights")
        edge_index = edges(12, 10 if two else None)
        edge_attr = None if options["edge_dim"] is None else torch.randn(edge_index.shape[1], F)
        mine, theirs = pair(name, (IN, TARGET_IN) if two else IN, **options)
        x = (torch.randn(12, IN), torch.randn(10, TARGET_IN)) if two else torch.randn(12, IN)
        assert_equal_layers(mine, theirs, x, edge_index, edge_attr)


@pytest.mark.parametrize("fill_value", ["mean", "add", "min", "max", "mul", 0.5, "tensor"])
@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_features_of_self_loops(name: str, fill_value: Any) -> None:
    """As PyG makes them, also where a node has no edges."""
    fill_value = torch.tensor([0.3, -1.0]) if fill_value == "tensor" else fill_value
    mine, theirs = pair(name, edge_dim=F, fill_value=fill_value)
    edge_index = edges()
    edge_attr = torch.randn(edge_index.shape[1], F)
    assert_equal_layers(mine, theirs, torch.randn(12, IN), edge_index, edge_attr)


@pytest.mark.parametrize("name", CONVS)
def test_further_ways_to_call(name: str) -> None:
    """One set of nodes for a pair of sizes, two sets for one, one feature per edge as (E,)."""
    mine, theirs = pair(name, (IN, IN), edge_dim=1)
    edge_index = edges()
    attr = torch.randn(edge_index.shape[1])
    if name == "TransformerConv":  # PyG's takes no (E,)
        attr = attr[:, None]
    assert_equal_layers(mine, theirs, torch.randn(12, IN), edge_index, attr)
    mine, theirs = pair(name)
    sampled = torch.randn(12, IN), torch.randn(10, IN)
    assert_equal_layers(mine, theirs, sampled, edges(12, 10), None)
    if name != "TransformerConv":
        mine, theirs = pair(name, negative_slope=0.01)
        assert_equal_layers(mine, theirs, torch.randn(12, IN), edge_index, None)


@pytest.mark.parametrize("name", CONVS)
def test_training_after_inference_on_the_same_edges(name: str) -> None:
    """As where a trainer validates first: what is known of an edge_index then serves training."""
    mine, theirs = pair(name)
    x, edge_index = torch.randn(12, IN), edges()
    with torch.inference_mode():
        mine(x, edge_index)
        made = edge_index.clone()  # by a loader, in a loop that validates
        mine(x, made)
    assert_equal_layers(mine, theirs, x, edge_index, None)
    mine(x, made).sum().backward()


@pytest.mark.parametrize("name", CONVS)
def test_forces_train_as_with_pyg(name: str) -> None:
    """The gradient of an energy in the nodes, and that of a loss of it in the parameters."""
    edge_index, results = edges(), []
    for layer in pair(name):
        layer = layer.double()
        x = torch.randn(12, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        x.requires_grad_()
        energy = layer(x, edge_index).tanh().sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        loss = force.square().sum()
        of_x, *rest = torch.autograd.grad(
            loss, [x, *layer.parameters()], allow_unused=True, materialize_grads=True
        )
        # Parameters have other names and shapes here and there
        sizes = torch.stack([gradient.norm() for gradient in rest if gradient.any()])
        results.append([force, of_x, sizes.sort().values])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("sort_order", [None, "row", "col"])
def test_edge_index_of_pyg(sort_order: str | None) -> None:
    mine, theirs = pair("GATv2Conv")
    edge_index = edges()
    made = EdgeIndex(edge_index, sparse_size=(12, 12))
    if sort_order is not None:
        made = made.sort_by(sort_order).values
    x = torch.randn(12, IN)
    torch.testing.assert_close(mine(x, made), theirs(x, edge_index))


@pytest.mark.parametrize("name", CONVS)
def test_weights_are_those_of_pyg(name: str) -> None:
    """Of every edge that is no self-loop, in the order given; the loops of PyG come last."""
    mine, theirs = pair(name)
    edge_index, x = edges(), torch.randn(12, IN)
    _, (own_edges, own) = mine(x, edge_index, return_attention_weights=True)
    _, (their_edges, wanted) = theirs(x, edge_index, return_attention_weights=True)
    assert torch.equal(own_edges[:, : edge_index.shape[1]], edge_index)
    if name == "TransformerConv":
        assert own_edges is edge_index
        torch.testing.assert_close(own, wanted)
        return
    own_kept, their_kept = (e[0] != e[1] for e in (own_edges, their_edges))
    torch.testing.assert_close(own[own_kept], wanted[their_kept])
    loops = own.new_zeros(12, HEADS).index_add(0, own_edges[0, ~own_kept], own[~own_kept])
    torch.testing.assert_close(loops, wanted[~their_kept])


def test_a_model_of_pyg_is_loaded_whole() -> None:
    """Where our layers stand in it, by the same names; what does not fit is an error."""
    theirs = pyg.Sequential("x, edge_index", [
        (pyg.GATConv(IN, OUT, HEADS, residual=True), "x, edge_index -> x"),
        (pyg.GATv2Conv(OUT * HEADS, OUT, share_weights=True), "x, edge_index -> x"),
        (pyg.TransformerConv(OUT, OUT, root_weight=False), "x, edge_index -> x"),
    ])  # fmt: skip
    mine = pyg.Sequential("x, edge_index", [
        (GATConv(IN, OUT, HEADS, residual=True), "x, edge_index -> x"),
        (GATv2Conv(OUT * HEADS, OUT, share_weights=True), "x, edge_index -> x"),
        (TransformerConv(OUT, OUT, root_weight=False), "x, edge_index -> x"),
    ])  # fmt: skip
    mine.load_state_dict(theirs.state_dict())
    x, edge_index = torch.randn(12, IN), edges()
    wanted = theirs(x, edge_index)
    torch.testing.assert_close(mine(x, edge_index), wanted)
    mine.load_state_dict(mine.state_dict())  # our own names are read as well
    torch.testing.assert_close(mine(x, edge_index), wanted)


def test_weights_that_do_not_fit_are_refused() -> None:
    state = pyg.GATConv(IN, OUT, HEADS, edge_dim=F).state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*edge\.weight"):
        GATConv(IN, OUT, HEADS).load_state_dict(state)
    with pytest.raises(RuntimeError, match="size mismatch for key.weight"):
        GATConv(IN, OUT + 1, HEADS, edge_dim=F).load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        GATConv(IN, OUT, HEADS, edge_dim=F, residual=True).load_state_dict(state)
    two = pyg.GATv2Conv(IN, OUT, HEADS).state_dict()
    with pytest.raises(RuntimeError, match=r"lin_r\.weight differs from lin_l's"):
        GATv2Conv(IN, OUT, HEADS, share_weights=True).load_state_dict(two)
