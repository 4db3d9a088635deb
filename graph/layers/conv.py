"""PyG's attention layers by name: `GraphAttention` with their arguments and their weights.

In place of `torch_geometric.nn`'s they take the same arguments (of those of `MessagePassing` none),
and `load_state_dict` reads theirs, alone or inside a model.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from attention_core.annotated import checked
from attention_core.checks import check_chance, check_whole
from graph.layers.attention import GraphAttention
from graph.layers.projections import check_size


class _Conv(GraphAttention):
    #: Parameters of PyG's layer, and what they are called here.
    _names: ClassVar[dict[str, str]]

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int,
        **options: Any,
    ) -> None:
        check_size("in_channels", in_channels)
        check_whole(out_channels=out_channels)
        check_chance(dropout=options["attention_dropout"])  # by PyG's name
        super().__init__(in_channels, heads, head_dim=out_channels, **options)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.register_load_state_dict_pre_hook(self._rename)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
        *,
        size: tuple[int, int] | None = None,
        backend: str | None = None,
    ) -> Any:
        """Call `GraphAttention.forward` with arguments in PyG's order."""
        return super().forward(
            x,
            edge_index,
            edge_attr,
            size=size,
            return_attention_weights=return_attention_weights,
            backend=backend,
        )

    @property
    def add_self_loops(self) -> bool:
        """`self_loops`: PyG's `to_hetero` and `HeteroConv` look whether they join two types."""
        return self.self_loops

    @staticmethod
    def _rename(
        module: _Conv,
        state_dict: dict[str, Tensor],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        """Gives PyG's parameters the names that they have here."""
        names = module._names
        if module.residual is not None:
            names = names | {"bias": "residual.bias"}
        module._drop(state_dict, prefix, errors)
        for theirs, ours in names.items():
            tensor = state_dict.pop(prefix + theirs, None)
            if tensor is not None:
                # Weights of a score have a dimension for the nodes there
                state_dict[prefix + ours] = tensor[0] if theirs.startswith("att") else tensor

    def _drop(self, state_dict: dict[str, Tensor], prefix: str, errors: list[str]) -> None:
        """Leaves out what PyG's layer holds and does not use."""


class GATConv(_Conv):
    """Graph attention (Veličković et al., 2018), with PyG's arguments; see `GraphAttention`.

    Args:
        in_channels: size of a node, or (of a source, of a target), each projected by itself.
        out_channels: size of a head.
        heads, concat, negative_slope, dropout, edge_dim, fill_value, residual: as there.
        add_self_loops: `self_loops`.
        bias: `output_bias`.
    """

    _names: ClassVar = {
        "lin.weight": "key.weight",
        "lin_src.weight": "key.weight",
        "lin_dst.weight": "query.weight",
        "lin_edge.weight": "edge.weight",
        "att_src": "score.key",
        "att_dst": "score.query",
        "att_edge": "score.edge",
        "res.weight": "residual.weight",
        "bias": "output_bias",
    }

    @checked
    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: float | Tensor | str = "mean",
        bias: bool = True,
        residual: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            heads,
            score="additive",
            concat=concat,
            negative_slope=negative_slope,
            attention_dropout=dropout,
            self_loops=add_self_loops,
            edge_dim=edge_dim,
            fill_value=fill_value,
            projection_bias=False,
            output_bias=bias,
            residual=residual,
        )

    def forward(  # type: ignore[override]  # PyG's orders of arguments differ
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        size: tuple[int, int] | None = None,
        return_attention_weights: bool | None = None,
        *,
        backend: str | None = None,
    ) -> Any:
        """Call `GraphAttention.forward` with arguments in PyG's order."""
        return super().forward(
            x, edge_index, edge_attr, return_attention_weights, size=size, backend=backend
        )


class GATv2Conv(_Conv):
    """Graph attention with a dynamic score (Brody et al., GATv2, 2022), with PyG's arguments; see
    `GraphAttention`.

    Args:
        in_channels: size of a node, or (of a source, of a target).
        out_channels: size of a head.
        heads, concat, negative_slope, dropout, edge_dim, fill_value, share_weights, residual: as
            there.
        add_self_loops: `self_loops`.
        bias: `projection_bias` and `output_bias`.
    """

    _names: ClassVar = {
        "lin_l.weight": "key.weight",
        "lin_l.bias": "key.bias",
        "lin_r.weight": "query.weight",
        "lin_r.bias": "query.bias",
        "lin_edge.weight": "edge.weight",
        "att": "score.weight",
        "res.weight": "residual.weight",
        "bias": "output_bias",
    }

    @checked
    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: float | Tensor | str = "mean",
        bias: bool = True,
        share_weights: bool = False,
        residual: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            heads,
            score="additive_v2",
            concat=concat,
            negative_slope=negative_slope,
            attention_dropout=dropout,
            self_loops=add_self_loops,
            edge_dim=edge_dim,
            fill_value=fill_value,
            projection_bias=bias,
            output_bias=bias,
            share_weights=share_weights,
            residual=residual,
        )

    def _drop(self, state_dict: dict[str, Tensor], prefix: str, errors: list[str]) -> None:
        if self.query is not None:
            return
        for name in ("weight", "bias"):
            left, right = (state_dict.get(f"{prefix}{lin}.{name}") for lin in ("lin_l", "lin_r"))
            if left is None or right is None:
                continue
            if torch.equal(left, right):
                del state_dict[f"{prefix}lin_r.{name}"]
            else:
                errors.append(
                    f"{prefix}lin_r.{name} differs from lin_l's, but share_weights=True has one"
                )


class TransformerConv(_Conv):
    """The graph transformer's attention (Shi et al., UniMP, 2021), with PyG's arguments; see
    `GraphAttention`.

    Args:
        in_channels: size of a node, or (of a source, of a target).
        out_channels: size of a head.
        heads, concat, dropout, edge_dim: as there.
        beta: residual="gated".
        bias: `projection_bias` and, with `root_weight`, `output_bias`.
        root_weight: `residual`.
    """

    _names: ClassVar = {
        "lin_key.weight": "key.weight",
        "lin_key.bias": "key.bias",
        "lin_query.weight": "query.weight",
        "lin_query.bias": "query.bias",
        "lin_value.weight": "value.weight",
        "lin_value.bias": "value.bias",
        "lin_edge.weight": "edge.weight",
        "lin_skip.weight": "residual.weight",
        "lin_skip.bias": "residual.bias",
        "lin_beta.weight": "gate.weight",
    }

    @checked
    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        beta: bool = False,
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        root_weight: bool = True,
    ) -> None:
        residual: bool | Literal["gated"] = "gated" if beta and root_weight else root_weight
        super().__init__(
            in_channels,
            out_channels,
            heads,
            concat=concat,
            residual=residual,
            attention_dropout=dropout,
            edge_dim=edge_dim,
            projection_bias=bias,
            output_bias=bias and root_weight,
        )

    def _drop(self, state_dict: dict[str, Tensor], prefix: str, errors: list[str]) -> None:
        if self.residual is None:
            for name in ("weight", "bias"):
                state_dict.pop(f"{prefix}lin_skip.{name}", None)
