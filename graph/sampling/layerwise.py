"""Inference over all nodes of a large graph, one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole
from graph.sampling.checks import check_edges, check_rows
from graph.sampling.draw import Found, InEdges


@torch.no_grad()
@checked
def layerwise(
    layers: Iterable[Callable[..., Tensor]],
    x: Tensor,
    edge_index: Tensor,
    edge_attr: Tensor | None = None,
    *,
    batch_size: int = 4096,
    max_edges: int | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Compute the output of the last layer for every node, as of one pass over the whole graph.

    Each layer is computed for some nodes at a time, from all edges into them, before the next layer
    begins: every node's state is computed once per layer, which sampled batches would repeat for
    every batch that holds it. Memory, beside `x` and `edge_index`: 35 bytes an edge while they are
    sorted, once; from then on 8 bytes an edge and 4 a node, the states of one layer before and
    after, both where `x` lies, and what a layer takes for one chunk, of at most `batch_size` nodes
    and as many more as there are edges into them.

    A layer sees, as a graph of their own, the nodes of a chunk, first, and behind them the sources
    of the edges into them. So what it computes for a node must depend on the node, the edges into
    it and their sources, as attention, SAGE and GIN do. GCN also reads how many edges lead into
    each source: give it their normalisation as `edge_attr`.

    Args:
        layers: called in turn with nodes (n, D), edges (2, e) and, if there is `edge_attr`, that of
            the edges. Modules, in evaluation mode, or functions, which may add what stands between
            layers: `lambda x, edge_index: conv(x, edge_index).relu()`.
        x: (N, D) the nodes.
        edge_index: (2, E), row 0 the source, row 1 the target.
        edge_attr: (E, …) of the edges.
        batch_size: nodes of a chunk.
        max_edges: edges of a chunk at most, which bounds its memory where some nodes have very
            many; a node that alone has more is a chunk of its own. None for no bound.
        device: where a chunk is computed; None for where `x` lies.

    Returns: (N, D') on the device of `x`.

    Raises:
        TypeError, ValueError: an argument of another shape, kind or range; the message names it.
    """
    if not isinstance(x, Tensor) or x.ndim == 0:
        raise TypeError(f"x must be a tensor (N, ...), got {x!r:.80}")
    layers = list(layers)
    if not all(map(callable, layers)):
        raise TypeError(f"layers must be modules or functions, got {layers!r:.80}")
    check_dense(x=x, edge_attr=edge_attr)
    check_rows(x, len(x), "x", "node")
    edge_index = check_edges(edge_index, len(x), len(x))
    check_rows(edge_attr, edge_index.shape[1], "edge_attr", "edge")
    check_whole(batch_size=batch_size)
    check_whole(max_edges=max_edges, or_none=True)
    edges = InEdges(edge_index.cpu(), len(x), len(x))
    home, device = x.device, x.device if device is None else device
    for layer in layers:
        out: Tensor | None = None
        for begin, end in _chunks(edges.start, batch_size, max_edges):
            target = torch.arange(begin, end)
            found = Found(len(x), target)
            col, position = edges.all(target)
            source, edge = edges.at(position)
            row = found.add(source)
            inputs = [x[found.node.to(home)], torch.stack([row, col])]
            if edge_attr is not None:
                inputs.append(edge_attr[edge.to(edge_attr.device)])
            done = layer(*(tensor.to(device) for tensor in inputs))[: end - begin].to(home)
            if out is None:
                out = done.new_empty(len(x), *done.shape[1:])
            out[begin:end] = done
        x = out if out is not None else layer(x, edge_index)
    return x


def _chunks(start: Tensor, nodes: int, edges: int | None) -> Iterator[tuple[int, int]]:
    """Spans of at most so many nodes and edges, or of one node."""
    begin, total = 0, len(start) - 1
    while begin < total:
        end = min(begin + nodes, total)
        if edges is not None:
            fitting = int(torch.searchsorted(start, int(start[begin]) + edges, right=True)) - 1
            end = min(end, max(fitting, begin + 1))
        yield begin, end
        begin = end
