"""How many edges a node has, in and out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole
from attention_core.spaces.csr import count_each
from attention_core.spaces.edge_list import EdgeList


@checked
def degrees(edges: EdgeList) -> Tensor:
    """Count in-degree and out-degree of each node, (N, 2) integers."""
    ends = (edges.target, edges.source)
    return torch.stack([count_each(end, edges.num_nodes) for end in ends], dim=1)


class CentralityEmbedding(nn.Module):
    """A learned vector for each in-degree and one for each out-degree, to add to tokens
    (centrality encoding: Ying et al., Graphormer, 2021).

    Args:
        dim: size D of a token.
        max_degree: the largest degree with a vector of its own, which larger ones share.
    """

    @checked
    def __init__(self, dim: int, max_degree: int) -> None:
        super().__init__()
        check_whole(dim=dim, max_degree=max_degree)
        self.max_degree = max_degree
        self.incoming = nn.Embedding(max_degree + 1, dim)
        self.outgoing = nn.Embedding(max_degree + 1, dim)
        for table in (self.incoming, self.outgoing):
            nn.init.normal_(table.weight, std=dim**-0.5)

    @checked
    def forward(self, degree: Tensor) -> Tensor:
        """Embed `degrees`, (N, 2), as (N, D).

        Raises:
            ValueError: `degree` is not integer (N, 2).
        """
        check_dense(degree=degree)
        integers = degree.dtype in (torch.int64, torch.int32)
        if degree.ndim != 2 or degree.shape[1] != 2 or not integers:
            raise ValueError(
                f"degree must hold integers (N, 2), got {degree.dtype} {tuple(degree.shape)}"
            )
        incoming, outgoing = degree.clamp(0, self.max_degree).unbind(1)
        embedding: Tensor = self.incoming(incoming) + self.outgoing(outgoing)
        return embedding
