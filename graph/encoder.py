"""What graph transformers add to `attention_core.Encoder`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from attention_core import (
    Bias,
    EdgeBias,
    Encoder,
    Mask,
    MultiheadAttention,
    Rotary,
    Score,
    Space,
)
from attention_core.annotated import checked
from attention_core.cache import LayerCache
from attention_core.job import Plan
from attention_core.layers import AttentionOptions, EncoderOptions
from attention_core.scores import ScoreName
from attention_core.spaces.csr import count_each


class SelfAttention(MultiheadAttention):
    """Self-attention of nodes, with a second one beside it where there is a `local` mask.

    Args:
        dim, heads: as in `MultiheadAttention`.
        score, edge_dim: as in `MultiheadAttention`.
        local: mask of a second attention, whose output is added (Rampášek et al., GPS, 2022).
            `score` and `edge_dim` are then of this one; the first is a dot product without edges.
        edge_bias: arguments of an `EdgeBias` of the local attention, where it has one.
        degree_scaler: multiply each feature of the output by a + b · log(1 + in-degree), a and b
            learned (Ma et al., GRIT, 2023): attention, a mean, does not tell how many it is of.
        rotary, attention_dropout, attention: of `MultiheadAttention`, of both.
        bias: of the first.
    """

    _no_context = "nodes attend to the nodes of their graph: no context, no cache"

    @checked
    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        score: Score | ScoreName | None = None,
        edge_dim: int | None = None,
        local: Mask | None = None,
        edge_bias: Mapping[str, Any] | None = None,
        degree_scaler: bool = False,
        rotary: Rotary | None = None,
        bias: Bias | None = None,
        attention_dropout: float = 0.0,
        **attention: Unpack[AttentionOptions],
    ) -> None:
        of_edges: dict[str, Any] = {"score": score, "edge_dim": edge_dim}
        both: dict[str, Any] = {
            "rotary": rotary,
            "attention_dropout": attention_dropout,
            **attention,
        }
        super().__init__(dim, heads, bias=bias, **(of_edges if local is None else {}), **both)
        self.local_mask = local
        self.local: MultiheadAttention | None = None
        if local is not None:
            own = None if edge_bias is None else EdgeBias(heads, **edge_bias)
            self.local = MultiheadAttention(dim, heads, bias=own, **of_edges, **both)
        #: (2, D): a and b.
        self.degree_scale: nn.Parameter | None = None
        if degree_scaler:
            self.degree_scale = nn.Parameter(torch.stack([torch.ones(dim), torch.zeros(dim)]))

    def plan(
        self,
        x: Tensor,
        space: Space | tuple[Space, Space],
        mask: Mask | Tensor | None = None,
        bias: Bias | None = None,
        backend: str | None = None,
    ) -> Plan:
        """Make the plan of this layer, which also holds that of its local attention."""
        plan = super().plan(x, space, mask, bias, backend)
        local = self.local
        if local is not None:
            own = local.plan(x, plan.job.spaces, self.local_mask, backend=backend)
            plan.job.notes["local"] = own
        return plan

    def masks(self, mask: Mask | None) -> list[Mask | None]:
        return [mask] if self.local is None else [mask, self.local_mask]

    def _spaces(
        self, x: Tensor, context: Tensor | None, space: Space | tuple[Space, Space] | None
    ) -> tuple[Space, Space]:
        if space is None:
            raise ValueError("nodes need space=Graph(...), or plan=")
        return super()._spaces(x, context, space)

    def _forward(
        self,
        x: Tensor,
        context: Tensor | None,
        *,
        bias: Bias | None,
        cache: LayerCache | None,
        plan: Plan,
    ) -> Tensor:
        out = super()._forward(x, context, bias=bias, cache=cache, plan=plan)
        if self.local is not None:
            out = out + self.local(x, plan=plan.memo("local", lambda: _local(plan)))
        if self.degree_scale is not None:
            one, other = self.degree_scale.to(out.dtype)
            out = out * (one + other * _log_degree(plan.job.spaces[0]).to(out.dtype))
        return out


class GraphEncoder(Encoder):
    """An `Encoder` over a `Graph`, whose blocks have `SelfAttention`.

    Args:
        dim, depth, heads: as in `Encoder`.
        local, edge_bias, degree_scaler: as in `SelfAttention`.
        options: further ones of `Encoder`.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        *,
        local: Mask | None = None,
        edge_bias: Mapping[str, Any] | None = None,
        degree_scaler: bool = False,
        **options: Unpack[EncoderOptions],
    ) -> None:
        options["attention_type"] = partial(
            SelfAttention, local=local, edge_bias=edge_bias, degree_scaler=degree_scaler
        )
        super().__init__(dim, depth, heads, **options)


def _log_degree(space: Space) -> Tensor:
    """(L, 1): log(1 + in-degree) of the node at each token, 0 for special ones."""
    edges = space.edges
    if edges is None or space.nodes is None:
        raise TypeError(
            f"degree_scaler needs edges: a Graph, or with_edges(edge_index); got {space.describe()}"
        )
    of_nodes = edges.memo("log_degree", lambda: count_each(edges.target, edges.num_nodes).log1p())
    if space.special is None:
        return of_nodes[space.nodes, None]
    padded = torch.cat([of_nodes, of_nodes.new_zeros(1)])  # no node is -1
    return padded[space.nodes, None]


def _local(plan: Plan) -> Plan:
    """The plan of the local attention, for the forward pass of `plan`."""
    own: Plan | None = plan.job.notes.get("local")
    if own is None:
        raise ValueError("the plan was made by a layer without a local attention")
    return own.renewed()
