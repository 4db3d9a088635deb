"""Edges between the tokens of a space: which one joins a pair, and its row in tables of pairs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from attention_core.annotated import checked
from attention_core.lasting import computed, lasting
from attention_core.spaces.edge_list import EdgeList
from attention_core.spaces.joinable import Joinable
from attention_core.transfer import moved

if TYPE_CHECKING:
    from attention_core.spaces.pairs import Pairs


class Linked(Joinable):
    """Tokens that may have edges between them: the part of `Space` that knows these.

    Attributes:
        edges: the edges, None where there are none.
        num_nodes: number of nodes that they are between, kept as tokens or not.
    """

    edges: EdgeList | None = None
    num_nodes: int = 0

    def _link(
        self,
        edge_index: Tensor,
        edge_attr: Tensor | None = None,
        pair_attr: Mapping[str, Tensor] | None = None,
    ) -> None:
        held = [tensor.device for _, tensor, _ in self.tensors()]
        if held and edge_index.device != held[0]:
            raise ValueError(
                f"edge_index is on {edge_index.device}, what is known of tokens on {held[0]}"
            )
        every = self.special is None
        ordinary = torch.ones(self.length, dtype=torch.bool, device=self.device)
        if self.special is not None:
            ordinary = ~self.special
        segments = self.segments
        if self.batch is not None:
            if segments is not None:
                raise ValueError(
                    "edge_index needs a space without a batch or without segments, got "
                    f"{self.describe()}"
                )
            ordinary = ordinary.expand(self.batch, -1)
            segments = torch.arange(self.batch, device=self.device)[:, None].expand(ordinary.shape)
        if segments is not None:  # to choose some of them would be to ask how many
            segments = segments.flatten() if every else segments[ordinary]
        nodes = (ordinary.flatten().cumsum(0) - 1).view(ordinary.shape)
        self.nodes = nodes.masked_fill(~ordinary, -1)
        self.num_nodes = ordinary.numel() if every else int(ordinary.sum())
        self.whole = every and self.batch is None and self.valid is None
        self.edges = EdgeList(edge_index, self.num_nodes, edge_attr, segments, pair_attr)

    @lasting
    @checked
    def with_edges(
        self,
        edge_index: Tensor,
        *,
        edge_attr: Tensor | None = None,
        pair_attr: Mapping[str, Tensor] | None = None,
    ) -> Self:
        """Return this space with edges between its tokens: for `Edges`, `EdgeBias`, edge features.

        The distance stays that of the space; hops are that of a `Graph`.

        Args:
            edge_index: (2, E) integers: row 0 the source (key), row 1 the target (query). Nodes are
                this space's tokens in order, special ones aside; in a batch row after row, padding
                included: token i of n in row b is node b·n + i.
            edge_attr: (E,) or (E, F), features of the edges.
            pair_attr: tables of all pairs of nodes inside each sample, as a `Graph` has them.

        Raises:
            ValueError: there are edges already, or a batch whose rows have segments.
        """
        if self.edges is not None:
            raise ValueError(f"{self.describe()} has edges already")
        new = copy.copy(self)
        new._link(edge_index, edge_attr, pair_attr)
        return new

    def _hold_packed(self, spaces: list[Self]) -> None:
        edges = [space.edges for space in spaces if space.edges is not None]
        if self.nodes is None or all(one is edges[0] for one in edges):
            return
        counts = torch.tensor([one.num_nodes for one in edges])
        lengths = torch.tensor([space.length for space in spaces])
        first = torch.repeat_interleave(counts.cumsum(0) - counts, lengths)
        shifted = self.nodes + moved(first, self.device)
        self.nodes = torch.where(self.nodes < 0, self.nodes, shifted)
        self.edges, self.num_nodes = EdgeList.joined(edges), sum(one.num_nodes for one in edges)

    def _linked(self, what: str) -> EdgeList:
        if self.edges is None:
            raise TypeError(
                f"{self.describe()} has no {what}: give with_edges(edge_index), or a Graph"
            )
        return self.edges

    @staticmethod
    def _ends(pairs: Pairs) -> tuple[Tensor, Tensor]:
        return pairs.take("nodes", "query"), pairs.take("nodes", "key")

    def edge(self, pairs: Pairs) -> Tensor:
        """Return the edge from key to query, an index into those of this space, or -1.

        In the broadcast shape of `pairs`.
        """
        return self._linked("edges").find(*self._ends(pairs))

    @property
    def edge_attr(self) -> Tensor | None:
        """(E,) or (E, F), features of the edges; None where there are none."""
        return None if self.edges is None else self.edges.attr

    def pair(self, pairs: Pairs) -> Tensor:
        """Return the row of each pair in tables of pairs, in the broadcast shape of `pairs`; -1
        between two samples."""
        return self._linked("tables of pairs").pair(*self._ends(pairs))

    def arrived(self, origin: Self) -> None:
        if "whole" in vars(origin):
            self.whole = origin.whole
        super().arrived(origin)

    @property
    def _made_on_host(self) -> bool:
        # There edges may be without their features, which what is made of them has, too
        return self.edges is None and super()._made_on_host

    def _looked_at(self) -> Self:
        if self.edges is None:
            return self
        new = copy.copy(self)
        new.edges = self.edges.host if self.edges.has_host else self.edges.bare
        return new

    def keep_host(self, space: Self | Callable[[], Self]) -> None:
        super().keep_host(space)
        if self.edges is not None and isinstance(space, Linked) and space.edges is not None:
            self.edges.know_host(space.edges)

    @computed
    def whole(self) -> bool:
        """Whether its tokens are all nodes of its edges, in order, and nothing else."""
        return (
            self.edges is not None
            and self.nodes is not None
            and self.batch is None
            and self.valid is None
            and self.special is None
            and self.length == self.num_nodes
            and torch.equal(self.nodes, torch.arange(self.length, device=self.nodes.device))
        )

    def token_of_node(self) -> Tensor | None:
        """Return the token of each node, (N,), -1 where it was dropped; None where that is not one
        row, because samples kept different nodes, or a node was kept more than once."""
        if self.nodes is None or self.batch is not None:
            return None
        if self.whole:
            return self.nodes
        at = (self.nodes >= 0).nonzero().squeeze(-1)
        token = self.nodes.new_full((self.num_nodes,), -1)
        token[self.nodes[at]] = at
        return token if int((token >= 0).sum()) == len(at) else None
