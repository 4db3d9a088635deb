"""What PyG's tools look for in a layer: that it is a `MessagePassing`, whose messages they see."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn.conv import MessagePassing


class SeenMessages(MessagePassing):
    """A layer that attends by itself, and makes messages only where somebody looks at them.

    `to_hetero` copies it for each type of edges; `GNNExplainer` puts a mask on its messages and
    `AttentionExplainer` a hook, and so may anybody with PyG's hooks. The messages come in the order
    of the edges as they were given, self-loops of nodes that were given none behind them.
    """

    heads: int
    kv_heads: int
    attention_dropout: float
    #: Whether each node attends to itself, whatever loops are listed.
    self_loops: bool

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # PyG compiles a `propagate` for each class and keeps the one it had for explainers: of a
        # subclass it would keep the compiled one of its parent, which no explainer can look into
        if "propagate" not in cls.__dict__:
            cls.propagate = MessagePassing.propagate

    def __init__(self) -> None:
        super().__init__(aggr="add", node_dim=0)

    @property
    def watched(self) -> bool:
        """Whether an explainer or a hook is to see messages."""
        hooks = (
            self._propagate_forward_pre_hooks,
            self._propagate_forward_hooks,
            self._message_forward_pre_hooks,
            self._message_forward_hooks,
            self._aggregate_forward_pre_hooks,
            self._aggregate_forward_hooks,
        )
        return bool(self.explain) or any(hooks)

    def show(
        self,
        edge_index: Tensor,
        size: tuple[int, int],
        query: Tensor,
        value: Tensor,
        alpha: Tensor,
        edge_value: Tensor | None,
    ) -> Tensor:
        """Compute the output of attention (M, H, D) message by message, for explainers and hooks.

        Args:
            edge_index: (2, E).
            size: numbers of sources N and of targets M.
            query: (M, H, D) of targets, which messages do not hold but explainers read.
            value: (N, Hkv, D) of sources.
            alpha: (E, H) weights before dropout.
            edge_value: (E, Hkv, D), what edges add to the values along them.
        """
        group = self.heads // self.kv_heads
        if edge_value is not None:
            edge_value = edge_value.repeat_interleave(group, 1)
        x = value.repeat_interleave(group, 1), query
        alpha = nn.functional.dropout(alpha, self.attention_dropout, self.training)
        out: Tensor = self.propagate(edge_index, size=size, x=x, alpha=alpha, edge_value=edge_value)
        return out

    def message(self, x_j: Tensor, alpha: Tensor, edge_value: Tensor | None) -> Tensor:
        """Compute (E, H, D): along each edge its weight (E, H) times what its source has to say."""
        return alpha[..., None] * (x_j if edge_value is None else x_j + edge_value)

    def explain_message(self, inputs: Tensor, dim_size: int | None) -> Tensor:
        """Multiply the messages by an explainer's mask of the edges given.

        Raises:
            ValueError: there is no mask, or it is of other edges than the layer was given.
        """
        mask = self._edge_mask
        if mask is None:
            raise ValueError("explain is True, but no explainer has set an edge mask")
        mask = mask.sigmoid() if self._apply_sigmoid else mask
        if self.self_loops:  # they stand whether they are listed or not
            mask = mask.where(self._loop_mask, 1.0)
        added = len(inputs) - len(mask)
        if added < 0 or (added and not self.self_loops):
            raise ValueError(
                f"the explainer's mask is of {len(mask)} edges, but the layer was given "
                f"{len(inputs)}"
            )
        mask = torch.cat([mask, mask.new_ones(added)])
        return inputs * mask.view(-1, *[1] * (inputs.ndim - 1))

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)
