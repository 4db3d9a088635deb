"""From the tokens of nodes to what is asked of pairs of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.compiler import is_exporting

from attention_core.annotated import checked
from attention_core.checks import check_dense, check_whole, may_look

_CHUNK = 1 << 24  # numbers of pairs' tokens multiplied at a time, 64 MiB


class EdgeHead(nn.Module):
    """Outputs for pairs of nodes, from the tokens of source and target, in that order, and what is
    known of the edge between them.

    Args:
        dim: size D of a token.
        outputs: number of outputs C.
        edge_dim: size of an edge's token, where it has one.
    """

    @checked
    def __init__(self, dim: int, outputs: int, *, edge_dim: int | None = None) -> None:
        super().__init__()
        check_whole(dim=dim, outputs=outputs)
        check_whole(edge_dim=edge_dim, or_none=True)
        self.edge_dim = edge_dim
        self.hidden = nn.Linear(2 * dim + (edge_dim or 0), dim)
        self.out = nn.Linear(dim, outputs)

    @checked
    def forward(self, tokens: Tensor, pairs: Tensor, edges: Tensor | None = None) -> Tensor:
        """Score pairs (2, B) of the N nodes with tokens (N, D), and edges (B, edge_dim): (B, C)."""
        source, target = pairs
        known = [tokens[source], tokens[target], *([] if edges is None else [edges])]
        outputs: Tensor = self.out(nn.functional.gelu(self.hidden(torch.cat(known, dim=-1))))
        return outputs


class LinkHead(nn.Module):
    """Scores of links: ``Σ (S x_source) · r · (T x_target)``, with a vector r for each relation.

    This is DistMult (Yang et al., 2015) with a projection of its own for either end, without which
    every relation would score as its inverse does; over embeddings alone it is the canonical
    polyadic decomposition (Lacroix et al., 2018).

    Args:
        dim: size D of a token.
        relations: number of relations R.
    """

    @checked
    def __init__(self, dim: int, relations: int = 1) -> None:
        super().__init__()
        check_whole(dim=dim, relations=relations)
        self.source = nn.Linear(dim, dim)
        self.target = nn.Linear(dim, dim)
        #: (R, D), such that scores begin as a scaled dot product.
        self.relation = nn.Parameter(torch.empty(relations, dim))
        nn.init.normal_(self.relation, mean=1.0, std=1.0 if relations > 1 else 0.0)
        with torch.no_grad():
            self.relation.mul_(dim**-0.5)

    @checked
    def forward(self, tokens: Tensor, pairs: Tensor, relation: Tensor | None = None) -> Tensor:
        """Compute scores (...) of pairs (2, ...) of the N nodes with tokens (N, D).

        Args:
            relation: integers that broadcast to (...); None where there is one relation.

        Raises:
            ValueError: a relation is missing, or there is none such.
        """
        count = len(self.relation)
        if relation is None:
            if count > 1:
                raise ValueError(
                    f"edge_label_type is missing: the model was built with relations={count}"
                )
            relation = pairs.new_zeros(())
        check_dense(edge_label_type=relation)
        if relation.is_floating_point() or relation.dtype == torch.bool:
            raise TypeError(f"edge_label_type must hold integers, got {relation.dtype}")
        if not _broadcasts(relation.shape, pairs.shape[1:]):
            raise ValueError(
                f"edge_label_type must broadcast to {tuple(pairs.shape[1:])}, got "
                f"{tuple(relation.shape)}"
            )
        look = not is_exporting()
        if (
            may_look(relation)
            and relation.numel()
            and not 0 <= int(relation.min()) <= int(relation.max()) < count
        ):
            raise ValueError(
                f"edge_label_type names relations {int(relation.min())} to {int(relation.max())}, "
                f"but relations={count}: they are 0 to {count - 1}"
            )
        source, target = self.source(tokens), self.target(tokens)
        if (
            may_look(pairs)  # whether a row has one source, only a look at it tells
            and pairs.ndim == 3
            and relation.shape[-1:] in ((), (1,))
            and pairs.shape[2] * 4 > len(tokens)
        ):
            same = (pairs == pairs[..., :1]).all(-1)
            if bool(same.any(0).all()):
                kind = relation.expand(pairs.shape[1], 1)[:, 0]
                return self._one_to_many(source, target, pairs, kind, same[0])
        relation = relation.expand(pairs.shape[1:])
        if not look:
            return (source[pairs[0]] * self.relation[relation] * target[pairs[1]]).sum(-1)
        rows = len(relation)
        if not torch.is_grad_enabled():
            rows = max(1, _CHUNK // max(1, relation[:1].numel() * tokens.shape[1]))
        scores = [
            (source[ends[0]] * self.relation[kind] * target[ends[1]]).sum(-1)
            for ends, kind in zip(pairs.split(rows, dim=1), relation.split(rows), strict=True)
        ]
        return torch.cat(scores)

    def _one_to_many(
        self, source: Tensor, target: Tensor, pairs: Tensor, kind: Tensor, one_source: Tensor
    ) -> Tensor:
        """Scores (Q, C) of pairs (2, Q, C), a row of which has one source or else one target: as a
        product of matrices, many times as fast where all nodes are compared."""
        here = one_source[:, None]
        own = torch.where(one_source, pairs[0, :, 0], pairs[1, :, 0])
        vector = torch.where(here, source[own], target[own]) * self.relation[kind]
        scores = torch.where(here, vector @ target.T, vector @ source.T)
        return scores.gather(1, torch.where(here, pairs[1], pairs[0]))


@checked
def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, to) == to
    except RuntimeError:
        return False


def check_pairs(pairs: Tensor, nodes: int) -> None:
    """Raise ValueError where `edge_label_index` does not hold pairs (2, ...) of so many nodes."""
    check_dense(edge_label_index=pairs)
    integers = not pairs.is_floating_point() and pairs.dtype != torch.bool
    if pairs.ndim < 2 or len(pairs) != 2 or not integers:
        raise ValueError(
            f"edge_label_index must hold integers (2, ...), got {pairs.dtype} {tuple(pairs.shape)}"
        )
    if may_look(pairs) and pairs.numel() and not 0 <= int(pairs.min()) <= int(pairs.max()) < nodes:
        raise ValueError(
            f"edge_label_index names nodes {int(pairs.min())} to {int(pairs.max())}, but nodes are "
            f"0 to {nodes - 1}"
        )
