"""The edges along the shortest paths between nodes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_exporting

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole
from attention_core.spaces.edge_list import EdgeList

_CHUNK = 1 << 24  # numbers gathered at a time, 64 MiB


@checked
def path_features(edges: EdgeList, features: Tensor, max_hops: int) -> Tensor:
    """Compute features of the edges on the shortest path from key to query, position by position.

    With a weight for each position and feature, their product is Graphormer's edge encoding, the
    mean over the path of ``features · weight[position]`` (Ying et al., 2021). Position 0 is the
    edge into the query; of a longer path the first `max_hops` count. Where there are several
    shortest paths this is the mean over them all, so that it does not depend on how nodes are
    numbered, as it does in Graphormer, which takes the one that it finds first.

    Args:
        edges: of one or more graphs.
        features: (E, F) float; types as one-hot rows.
        max_hops: number of positions.

    Returns: (Σ n², max_hops · F) float32, a table for `Graph(pair_attr={"path": ...})`; zeros for
        a node with itself and where there is no path.

    Raises:
        ValueError: `features` has another shape, or the table would be too large.
    """
    if features.ndim != 2 or len(features) != edges.num_edges or not features.is_floating_point():
        raise ValueError(
            f"features must be float (E, F) with E={edges.num_edges}, got {features.dtype} "
            f"{tuple(features.shape)}"
        )
    check_whole(max_hops=max_hops)
    check_dense(features=features)
    if is_exporting():
        raise ValueError(
            "an exported program cannot follow shortest paths (PathBias): train with them stored, "
            "by AddPaths(max_hops) as data.pre_transform, and they are inputs of the program"
        )
    width = features.shape[1]
    rows = edges.count_pairs("features of the paths between all pairs", max_hops * width)
    features = features.float()
    hops, source = edges.hop_table, edges.all_pairs()[1]
    table = torch.zeros(rows, max_hops, width, device=hops.device)
    # How many shortest paths there are: each is one of a node nearer to the target, and an edge
    paths = (hops == 0).double()
    by_hop = hops.argsort()[: int(hops.isfinite().sum())]
    longest = int(hops[by_hop[-1]]) if len(by_hop) else 0
    every_hop = torch.arange(longest + 2, dtype=hops.dtype, device=hops.device)
    starts = torch.searchsorted(hops[by_hop], every_hop)
    csr = edges.csr
    first, degree = csr.start.long(), csr.start.diff().long()
    for hop in range(1, len(starts) - 1):
        nearer = by_hop[starts[hop - 1] : starts[hop]]
        reached = by_hop[starts[hop] : starts[hop + 1]]
        for part in _chunks(nearer, degree[source[nearer]], max_hops * width):
            fan = degree[source[part]]
            pair = torch.repeat_interleave(fan)
            nth = torch.arange(len(pair), device=pair.device) - (fan.cumsum(0) - fan)[pair]
            edge = first[source[part]][pair] + nth
            via = part[pair]
            # The same row of the table, that of the target, at the node that the edge comes from
            row = via + csr.column[edge] - source[via]
            kept = hops[row] == hop
            row, via, edge = row[kept], via[kept], edge[kept]
            count = paths[via]
            paths.index_add_(0, row, count)
            share = count.float()[:, None, None]
            known = min(hop - 1, max_hops)
            if known:
                table[:, :known].index_add_(0, row, table[via, :known] * share)
            if hop <= max_hops:
                own = features[csr.item[edge].long()]
                table[:, hop - 1].index_add_(0, row, own * share[..., 0])
        table[reached] /= paths[reached].float()[:, None, None]
    length = hops.clamp(1, max_hops)[:, None, None]
    return (table / length).flatten(1)


def _chunks(rows: Tensor, fan: Tensor, width: int) -> list[Tensor]:
    """`rows` in parts that lead on along at most so many edges."""
    part = fan.cumsum(0) * width // _CHUNK
    return list(rows.split(torch.bincount(part).tolist())) if len(rows) else []
